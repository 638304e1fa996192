package gossip

import (
	"context"
	"sync"
)

// post delivers letters over TCP, which blocks. Invariant: for each addressee at
// most one letter is under way and at most one waits, the latest; so its size is
// bounded by twice the number of coordinators.
type post struct {
	send func(peer, []byte)

	mu      sync.Mutex
	closed  bool
	busy    map[string]bool
	waiting map[string]letter
	wg      sync.WaitGroup
}

type letter struct {
	to  peer
	msg []byte
}

func newPost(send func(peer, []byte)) *post {
	return &post{send: send, busy: map[string]bool{}, waiting: map[string]letter{}}
}

// run closes the post when ctx ends and waits for the letters under way.
func (p *post) run(ctx context.Context) {
	<-ctx.Done()
	p.mu.Lock()
	p.closed = true
	clear(p.waiting)
	p.mu.Unlock()
	p.wg.Wait()
}

// put takes a letter and never blocks; it replaces one that waits.
func (p *post) put(to peer, msg []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.waiting[to.name] = letter{to, msg}
	if !p.busy[to.name] {
		p.busy[to.name] = true
		p.wg.Go(func() { p.deliver(to.name) })
	}
}

// deliver sends what waits for one addressee until nothing does.
func (p *post) deliver(name string) {
	for {
		p.mu.Lock()
		l, ok := p.waiting[name]
		delete(p.waiting, name)
		if !ok {
			delete(p.busy, name)
		}
		p.mu.Unlock()
		if !ok {
			return
		}
		p.send(l.to, l.msg)
	}
}
