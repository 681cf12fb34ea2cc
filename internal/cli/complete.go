package cli

import (
	"context"
	"embed"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/urfave/cli/v3"
)

//go:embed completion
var completionScripts embed.FS

func (a *App) completionCommand() *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a script with which a shell completes berth's words",
		ArgsUsage: "bash|zsh|fish",
		Category:  "Daemon",
		Description: `Verbs, options, and the names of containers, images and namespaces. Examples:
  source <(berth completion bash)
  source <(berth completion zsh)
  berth completion fish | source`,
		Action: func(_ context.Context, cmd *cli.Command) error {
			script, err := completionScripts.ReadFile("completion/berth." + cmd.Args().First())
			if err != nil || cmd.NArg() != 1 {
				return usageError("name the shell: bash, zsh or fish")
			}
			a.printf("%s", script)
			return nil
		},
	}
}

// completeCommand is what the scripts ask: its arguments are the words after
// the program's name, up to the one to be completed.
func (a *App) completeCommand() *cli.Command {
	return &cli.Command{
		Name: "__complete", Hidden: true, SkipFlagParsing: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second) // somebody waits at a prompt
			defer cancel()
			for _, c := range a.complete(ctx, cmd.Args().Slice()) {
				a.printf("%s\t%s\n", printable(c.word), printable(c.text))
			}
			return nil
		},
	}
}

type candidate struct{ word, text string }

// completer is what the words so far mean.
type completer struct {
	app *App
	// path are the commands named, the root first.
	path               []*cli.Command
	args               int // words that are no flags and no command
	address, namespace string
}

// complete returns what the last word may become. Nothing means that berth does
// not know; the shell tries files then.
func (a *App) complete(ctx context.Context, words []string) []candidate {
	if len(words) == 0 {
		words = []string{""}
	}
	c := &completer{
		app: a, path: []*cli.Command{a.root()},
		address: firstOf(os.Getenv("CONTAINERD_ADDRESS"), defaultAddress), namespace: firstOf(os.Getenv("CONTAINERD_NAMESPACE"), "default"),
	}
	last, waiting := words[len(words)-1], ""
	for _, w := range words[:len(words)-1] {
		waiting = c.take(w, waiting)
	}
	var list []candidate
	flag, value, valued := strings.Cut(last, "=")
	switch stop := c.cmd().StopOnNthArg; {
	case waiting != "":
		list = c.values(ctx, waiting, last)
	case stop != nil && c.args >= *stop:
		return nil // the container's own command
	case strings.HasPrefix(last, "-") && valued:
		for _, v := range c.values(ctx, strings.TrimLeft(flag, "-"), value) {
			list = append(list, candidate{flag + "=" + v.word, v.text})
		}
	case strings.HasPrefix(last, "-"):
		list = c.flags()
	case len(c.cmd().Commands) > 0 && c.args > 0:
		return nil // no command of ours
	case len(c.cmd().Commands) > 0:
		for _, sub := range c.cmd().Commands {
			if !sub.Hidden {
				list = append(list, candidate{sub.Name, sub.Usage})
			}
		}
	default:
		list = c.arguments(ctx)
	}
	list = slices.DeleteFunc(list, func(c candidate) bool { return !strings.HasPrefix(c.word, last) || !plain(c.word) })
	slices.SortFunc(list, func(a, b candidate) int { return strings.Compare(a.word, b.word) })
	return list
}

// plain says that a shell takes a word as it stands. The names of images may
// hold anything, and what is completed is run with the next key.
func plain(word string) bool {
	return !strings.ContainsFunc(word, func(r rune) bool {
		return !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || strings.ContainsRune("-_./:@=+", r))
	})
}

func (c *completer) cmd() *cli.Command { return c.path[len(c.path)-1] }

// take reads a word before the last; it returns the flag that waits for its
// value, which is the next word.
func (c *completer) take(word, waiting string) string {
	flag, value, valued := strings.Cut(strings.TrimLeft(word, "-"), "=")
	switch {
	case waiting != "":
		flag, value = waiting, word
	case !strings.HasPrefix(word, "-") || word == "-":
		if sub := c.cmd().Command(word); sub != nil && c.args == 0 {
			c.path = append(c.path, sub)
		} else {
			c.args++
		}
		return ""
	case !valued:
		if !strings.HasPrefix(word, "--") && flag != "" {
			flag = flag[len(flag)-1:] // of -it the last may take a value
		}
		if f := c.flag(flag); f != nil && f.TakesValue() {
			return flag
		}
		return ""
	}
	if len(c.path) == 1 {
		switch flag {
		case "address", "a":
			c.address = value
		case "namespace", "n":
			c.namespace = value
		}
	}
	return ""
}

func (c *completer) flag(name string) cli.DocGenerationFlag {
	for _, f := range c.cmd().Flags {
		if d, ok := f.(cli.DocGenerationFlag); ok && slices.Contains(f.Names(), name) {
			return d
		}
	}
	return nil
}

func (c *completer) flags() []candidate {
	list := []candidate{{"--help", "show help"}}
	for _, f := range c.cmd().Flags {
		d, ok := f.(cli.DocGenerationFlag)
		for _, name := range f.Names() {
			if ok && len(name) > 1 {
				list = append(list, candidate{"--" + name, placeholder.ReplaceAllString(d.GetUsage(), "$1")})
			}
		}
	}
	return list
}

// values are what a flag takes.
func (c *completer) values(ctx context.Context, flag, value string) []candidate {
	var words []string
	switch verb := c.cmd().Name; {
	case len(c.path) == 1 && (flag == "namespace" || flag == "n"):
		return c.names(ctx, "NAMESPACE")
	case flag == "filter" || flag == "f":
		keys := map[string]filterKeys{"ps": containerFilters, "events": eventFilters}[verb]
		if key, _, found := strings.Cut(value, "="); found && key == "status" {
			keys = nil
			for _, status := range containerStatuses {
				words = append(words, "status="+status)
			}
		}
		for _, key := range keys {
			words = append(words, key+"=")
		}
	case flag == "network" || flag == "net":
		words = []string{"none", "host", "cni", "container:"}
	case flag == "type":
		words = []string{"container", "image"}
	case flag == "format":
		words = []string{"json"}
	case flag == "pull":
		words = []string{"always", "missing", "never"}
	case flag == "restart":
		words = []string{"no", "always", "unless-stopped", "on-failure", "on-failure:"}
	case flag == "log-driver":
		words = []string{"json-file", "none"}
	}
	return candidates(words)
}

func candidates(words []string) []candidate {
	var list []candidate
	for _, w := range words {
		list = append(list, candidate{word: w})
	}
	return list
}

// arguments are what the verb's usage names at this place.
func (c *completer) arguments(ctx context.Context) []candidate {
	fields := strings.Fields(c.cmd().ArgsUsage)
	if len(fields) == 0 {
		return nil
	}
	kind := fields[min(c.args, len(fields)-1)]
	if c.args >= len(fields) && !strings.HasSuffix(strings.TrimRight(kind, "]"), "…") {
		return nil
	}
	kind = strings.Trim(kind, "[]…")
	switch {
	case c.cmd().Name == "completion":
		return candidates(strings.Split(kind, "|"))
	case kind == "NAME" && c.path[len(c.path)-2].Name == "namespace":
		return c.names(ctx, "NAMESPACE")
	case kind == "NAME":
		return append(c.names(ctx, "CONTAINER"), c.names(ctx, "IMAGE")...)
	}
	return c.names(ctx, kind)
}

// names asks the daemon, if one listens: completion starts none.
func (c *completer) names(ctx context.Context, kind string) []candidate {
	const patience = time.Second
	conn, err := dial(ctx, strings.TrimPrefix(c.address, "unix://"), patience)
	if err != nil {
		return nil
	}
	client, err := newClient(c.address, conn, patience)
	if err != nil {
		conn.Close()
		return nil
	}
	defer client.Close()
	ctx = namespaces.WithNamespace(ctx, c.namespace)
	var list []candidate
	switch kind {
	case "NAMESPACE":
		names, _ := client.NamespaceService().List(ctx)
		list = candidates(names)
	case "IMAGE":
		images, _ := client.ImageService().List(ctx)
		for _, img := range images {
			list = append(list, candidate{word: img.Name})
		}
	case "CONTAINER", "CONTAINER:PATH|PATH|-":
		suffix := ""
		if kind != "CONTAINER" {
			suffix = ":"
		}
		containers, _ := client.ContainerService().List(ctx)
		for _, con := range containers {
			list = append(list, candidate{con.ID + suffix, con.Image})
		}
	}
	return list
}
