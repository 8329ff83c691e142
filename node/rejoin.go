package node

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/holdfast-db/holdfast/command"
)

// origins is where the cluster of the node that answers came from.
type origins struct {
	ClusterID string         `json:"cluster_id"`
	Epoch     uint64         `json:"epoch"`
	Forks     []command.Fork `json:"forks"`
}

func (n *Node) origins() origins {
	id, epoch := n.parts.Identity.Cluster()
	return origins{ClusterID: id, Epoch: epoch, Forks: command.AllForks(n.parts.State.Forks(), n.parts.Identity.Forks())}
}

// FindFork asks the member at an address where those parted who live in an epoch of a
// cluster and those who live in the present one. The transport must introduce itself
// as one that is in no cluster yet. Errors: command.ErrWrongCluster; command.ErrNoTarget,
// they never parted.
func FindFork(ctx context.Context, t Transport, addr, clusterID string, epoch uint64) (command.Fork, error) {
	b, err := t.CallAddr(ctx, addr, methodOrigins, nil)
	if err != nil {
		return command.Fork{}, err
	}
	var o origins
	if err := json.Unmarshal(b, &o); err != nil {
		return command.Fork{}, fmt.Errorf("decode answer of %s: %w", addr, err)
	}
	if o.ClusterID != clusterID {
		return command.Fork{}, command.ErrWrongCluster.With("%s is in cluster %s, the data directory in %s", addr, o.ClusterID, clusterID)
	}
	fork, ok := command.ForkAfter(o.Forks, epoch)
	if !ok {
		return fork, command.ErrNoTarget.With("%s lives in epoch %d, as the data directory does: no other site has become home", addr, o.Epoch)
	}
	return fork, nil
}

// LastCommon is the last revision at which a state that ends at own, with the lineages
// that at tells, and that of the member at an address are equal, so that all its changes
// behind it are its own. What neither tells counts as different, but nothing up to
// fork.Committed is.
func LastCommon(ctx context.Context, t Transport, addr string, fork command.Fork, own uint64, at func(revision uint64) (command.Lineage, error)) (uint64, error) {
	low, high := min(fork.Committed, own), min(fork.Revision, own)
	for low < high {
		mid := high - (high-low)/2
		mine, err := at(mid)
		var theirs []byte
		if err == nil {
			theirs, err = t.CallAddr(ctx, addr, methodLineage, binary.BigEndian.AppendUint64(nil, mid))
		}
		switch {
		case errors.Is(err, command.ErrCompacted), errors.Is(err, command.ErrRevisionNotReached):
			high = mid - 1
		case err != nil:
			return 0, err
		case len(theirs) == len(mine) && command.Lineage(theirs) == mine:
			low = mid
		default:
			high = mid - 1
		}
	}
	return low, nil
}
