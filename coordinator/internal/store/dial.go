package store

import (
	"crypto/tls"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// DialConfig says which etcd, and as whom.
type DialConfig struct {
	Endpoints          []string
	Username, Password string
	TLS                *tls.Config
}

// Dial makes a client. It does not wait for etcd: a coordinator starts, and answers
// capacity, while etcd is away.
func Dial(c DialConfig) (*Client, error) {
	cl, err := clientv3.New(clientv3.Config{
		Endpoints: c.Endpoints, Username: c.Username, Password: c.Password, TLS: c.TLS,
		DialTimeout: 2 * time.Second, DialKeepAliveTime: 5 * time.Second, DialKeepAliveTimeout: 3 * time.Second,
		PermitWithoutStream: true, Logger: zap.NewNop(),
	})
	if err != nil {
		return nil, fmt.Errorf("dial etcd: %w", err)
	}
	return cl, nil
}
