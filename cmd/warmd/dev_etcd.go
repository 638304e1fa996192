package main

import (
	"context"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// devEtcd runs an etcd of one member inside this process. It listens on a Unix
// socket in the data folder only: nobody else is meant to use it.
type devEtcd struct {
	etcd *embed.Etcd
	url  string
}

// Ticks of a single member: there is nobody to lose an election to, so it need
// not wait the usual second for one.
const devTick, devElection = 10, 100

// startDevEtcd starts the member and waits until it answers.
func startDevEtcd(ctx context.Context, dir string) (*devEtcd, error) {
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel, cfg.TickMs, cfg.ElectionMs = filepath.Join(dir, "etcd"), "error", devTick, devElection
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModePeriodic, "1h" // its history would grow for ever
	client := url.URL{Scheme: "unix", Path: filepath.Join(dir, "etcd.sock")}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w (is another `warmd dev` using this --data folder?)", cfg.Dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		return &devEtcd{etcd: e, url: client.String()}, nil
	case err := <-e.Err():
		e.Close()
		return nil, fmt.Errorf("start embedded etcd: %w", err)
	case <-ctx.Done():
		e.Close()
		return nil, ctx.Err()
	case <-time.After(30 * time.Second):
		e.Close()
		return nil, fmt.Errorf("start embedded etcd in %s: not ready in 30 s", cfg.Dir)
	}
}

// Close ends the member; its clients must be closed before, or it waits for them.
func (d *devEtcd) Close() { d.etcd.Close() }
