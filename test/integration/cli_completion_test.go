package integration

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// TestCLICompletion types into real shells, and reads what they make of it.
func TestCLICompletion(t *testing.T) {
	harness.Each(t, func(t *testing.T, d *harness.Daemon) {
		id := d.ID("completed")
		d.MustBerth(t, "create", "--name", id, harness.Image, "true")
		for _, shell := range []struct {
			start []string
			load  string
		}{
			{[]string{"bash", "--norc", "--noprofile", "-i"}, "source <(berth completion bash)"},
			{[]string{"zsh", "-f", "-i"}, "autoload -U compinit; compinit -D -u; source <(berth completion zsh)"},
		} {
			t.Run(shell.start[0], func(t *testing.T) {
				term := d.SpawnTerminal(t, 200, 50, shell.start...)
				term.Type(t, "unset HISTFILE; PS1='$ '; PATH="+filepath.Dir(d.Programs.Berth)+":$PATH\n"+shell.load+"\necho re''ady\n")
				term.AwaitOutput(t, "ready")
				for _, line := range []struct{ typed, want string }{
					{"berth checkp", "berth checkpoint"},
					{"berth run --memory-sw", "--memory-swap"},
					{"berth ps --filter anc", "ancestor"},
					{"berth inspect --type im", "image"},
					{"berth rm " + id[:len(id)-4], id},
					{"berth run --rm berth.test/bus", harness.Image},
					{"berth rmi berth.test/busybox:", harness.Image},
				} {
					// On a busy machine berth may give up before the daemon answers.
					harness.Await(t, time.Minute, line.typed+" becomes "+line.want, func() bool {
						term.Type(t, "\x15"+line.typed+"\t") // ctrl-U takes away what was there
						return harness.Poll(5*time.Second, func() bool { return strings.Contains(term.Output(), line.want) })
					})
				}
				term.Type(t, "\x15")
				term.Type(t, "exit\n")
				term.Wait(t)
			})
		}
		d.MustBerth(t, "rm", id)
	})
}
