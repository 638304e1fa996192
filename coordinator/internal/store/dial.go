package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
)

// DialConfig says which etcd, and as whom.
type DialConfig struct {
	Endpoints          []string
	Username, Password string
	// TLS, if not nil, is asked for every connection: certificates may have changed.
	TLS func() *tls.Config
}

// Dial makes a client. It does not wait for etcd: a coordinator starts, and answers
// capacity, while etcd is away.
func Dial(c DialConfig) (*Client, error) {
	options := []grpc.DialOption{
		// The default pause between two tries to connect grows to two minutes: etcd would be
		// back long before we notice.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: dialTime,
		}),
		grpc.WithChainUnaryInterceptor(passLeaderless),
	}
	if c.TLS != nil {
		options = append(options, grpc.WithTransportCredentials(rotating{credentials.NewTLS(c.TLS()), c.TLS}))
	}
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, Username: c.Username, Password: c.Password,
		DialTimeout: dialTime, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		PermitWithoutStream: true, Logger: zap.NewNop(), DialOptions: options,
	})
	if err != nil {
		return nil, fmt.Errorf("dial etcd: %w", err)
	}
	return cl, nil
}

const dialTime = 2 * time.Second

// rotating are TLS credentials that are those of the moment, connection by connection.
type rotating struct {
	credentials.TransportCredentials
	now func() *tls.Config
}

func (r rotating) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(r.now()).ClientHandshake(ctx, authority, conn)
}

func (r rotating) Clone() credentials.TransportCredentials { return r }
