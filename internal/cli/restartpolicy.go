package cli

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/containerd/v2/core/containers"

	"github.com/berthd/berth/internal/cli/runspec"
)

// The labels by which containerd's restart monitor knows what to do.
const (
	restartStatus  = "containerd.io/restart.status"
	restartPolicy  = "containerd.io/restart.policy"
	restartLogURI  = "containerd.io/restart.loguri"
	restartStopped = "containerd.io/restart.explicitly-stopped"
)

// restartLabels tells the daemon's monitor of the user's policy.
func (p *plan) restartLabels(labels map[string]string) {
	if p.restart.Policy == "" || p.restart.Policy == "no" {
		return
	}
	labels[restartStatus], labels[restartPolicy] = "running", p.restart.String()
	if p.log != "" {
		labels[restartLogURI] = logURI(p.log)
	}
}

// checkMonitor refuses a policy that nobody would carry out.
func (s *session) checkMonitor(ctx context.Context, r runspec.Restart) error {
	answer, err := s.client.IntrospectionService().Plugins(ctx, "id==restart")
	if err != nil {
		return fmt.Errorf("ask the daemon for its restart monitor: %w", err)
	}
	for _, p := range answer.Plugins {
		if p.InitErr == nil && slices.Contains(p.Capabilities, r.Policy) {
			return nil
		}
	}
	return fmt.Errorf("--restart %s: the daemon has no restart monitor for this policy (leave it out)", r)
}

// noRestart keeps the monitor from starting a container that the user ends.
func (s *session) noRestart(ctx context.Context, c *containers.Container) error {
	return s.labelStopped(ctx, c, "true")
}

// allowRestart takes that back.
func (s *session) allowRestart(ctx context.Context, c *containers.Container) error {
	return s.labelStopped(ctx, c, "false")
}

func (s *session) labelStopped(ctx context.Context, c *containers.Container, value string) error {
	if c.Labels[restartStatus] == "" || firstOf(c.Labels[restartStopped], "false") == value {
		return nil
	}
	update := containers.Container{ID: c.ID, Labels: map[string]string{restartStopped: value}}
	if _, err := s.client.ContainerService().Update(ctx, update, "labels."+restartStopped); err != nil {
		return containerError(c.ID, err)
	}
	return nil
}

// updateRestart gives a container that exists another policy.
func (s *session) updateRestart(ctx context.Context, m *made, r runspec.Restart) error {
	labels := map[string]string{restartStatus: "", restartPolicy: "", restartLogURI: ""}
	if r.Policy != "no" {
		if err := s.checkMonitor(ctx, r); err != nil {
			return err
		}
		(&plan{restart: r, log: m.record.Log}).restartLabels(labels)
	}
	var paths []string
	for key := range labels {
		paths = append(paths, "labels."+key)
	}
	if _, err := s.client.ContainerService().Update(ctx, containers.Container{ID: m.ID, Labels: labels}, paths...); err != nil {
		return fmt.Errorf("container %q: update: %w", m.ID, err)
	}
	return nil
}
