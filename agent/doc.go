// Package agent is what runs on every node: it keeps parked workers ready on each
// device, takes claims over HTTP, and is the final authority on what runs here.
//
//	http*.go      the routes of agent/api, on a Unix socket and, if asked, on TCP
//	claim.go      is a claim sound? (model, arguments, endpoint) then a device's loop decides
//	internal/device   the loops: slots, workers, the life of a placement
//	journal.go    what must outlive the agent, on the disk before it is promised
//	adopt.go      a new agent meets the workers of the old one
//	capacity.go   what the node tells the fleet
//	agent.go      New wires; run.go: Run owns
//	supervise.go  what systemd is told: ready, the figures, that the loops turn
//	reload.go     what a new configuration changes while everything runs
//
// # Restarts
//
// The agent owns no engine: killed, upgraded or restarted, it leaves every worker
// alone, and the next one finds them through their zygotes and its journal:
//
//	journal says    found alive    then
//	parked          yes            parked again
//	parked          no             forgotten; the loop forks another
//	ready           yes            ready, same id, same endpoint
//	ready           no             failed, worker_lost
//	loading         yes or no      goes on where it was, within its deadline
//	ending          yes or no      ended
//	nothing         parked         parked again: an idle worker explains itself
//	nothing         being forked   ended: nobody waits for it any more, the loop forks another
//	nothing         anything else  quarantined: it keeps its slot until it is gone
//
// With Config.EndEngines (dev mode) the end of Run ends every engine instead.
package agent
