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

// FindForks asks the member at an address where the epochs of a cluster began, and in
// which one it lives. The transport must introduce itself as one that is in no cluster
// yet. Errors: command.ErrWrongCluster.
func FindForks(ctx context.Context, t Transport, addr, clusterID string) (forks []command.Fork, epoch uint64, err error) {
	b, err := t.CallAddr(ctx, addr, methodOrigins, nil)
	if err != nil {
		return nil, 0, err
	}
	var o origins
	if err := json.Unmarshal(b, &o); err != nil {
		return nil, 0, fmt.Errorf("decode answer of %s: %w", addr, err)
	}
	if o.ClusterID != clusterID {
		return nil, 0, command.ErrWrongCluster.With("%s is in cluster %s, the data directory in %s", addr, o.ClusterID, clusterID)
	}
	return o.Forks, o.Epoch, nil
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
