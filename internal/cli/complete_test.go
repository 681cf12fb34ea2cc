package cli

import (
	"context"
	"strings"
	"testing"
)

// TestComplete completes what needs no daemon.
func TestComplete(t *testing.T) {
	t.Setenv("CONTAINERD_ADDRESS", "/no/such.sock")
	for line, want := range map[string]string{
		"st":                    "start stats stop",
		"-":                     "--address --connect-timeout --debug --help --namespace --timeout",
		"-a /x -n y st":         "start stats stop",
		"run --memory-s":        "--memory-swap",
		"run --network ":        "cni container: host none",
		"run --net=h":           "--net=host",
		"run -it --pull ":       "always missing never",
		"run --rm -d --restart": "--restart",
		"run image --memory-s":  "",
		"ps -af ex":             "exited=",
		"ps --filter status=p":  "status=paused status=pausing",
		"events -f t":           "type=",
		"namespace c":           "create",
		"completion ":           "bash fish zsh",
		"rm ":                   "",
		"nosuch ":               "",
	} {
		var got []string
		for _, c := range (&App{}).complete(context.Background(), strings.Split(line, " ")) {
			got = append(got, c.word)
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %q, want %q", line, s, want)
		}
	}
	for word, want := range map[string]bool{"r.test/a_b:1@sha256:00": true, "a;b": false, "$(x)": false, "a b": false, "`x`": false} {
		if plain(word) != want {
			t.Errorf("%s: %v", word, !want)
		}
	}
}
