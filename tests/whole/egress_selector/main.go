// Dials targets as kube-apiserver does: by its own egress selector, from an EgressSelectorConfiguration.
//
// Arguments: the configuration's file, the name of a selection, and the target. Standard input goes to the target, and
// its bytes to standard output.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"k8s.io/apiserver/pkg/server/egressselector"
)

func run() error {
	config, err := egressselector.ReadEgressSelectorConfiguration(os.Args[1])
	if err != nil {
		return err
	}
	if errs := egressselector.ValidateEgressSelectorConfiguration(config); len(errs) > 0 {
		return errs.ToAggregate()
	}
	selector, err := egressselector.NewEgressSelector(config)
	if err != nil {
		return err
	}
	selection := map[string]egressselector.EgressType{
		"cluster": egressselector.Cluster, "controlplane": egressselector.ControlPlane, "etcd": egressselector.Etcd,
	}[os.Args[2]]
	dial, err := selector.Lookup(selection.AsNetworkContext())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	conn, err := dial(ctx, "tcp", os.Args[3])
	if err != nil {
		return err
	}
	defer conn.Close()
	go io.Copy(conn, os.Stdin)
	_, err = io.Copy(os.Stdout, conn)
	return err
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
