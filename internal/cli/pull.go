package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"

	"github.com/containerd/console"
	"github.com/containerd/containerd/v2/core/transfer/image"
	"github.com/containerd/containerd/v2/core/transfer/registry"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v3"

	"github.com/berthd/berth/internal/cli/attach"
	"github.com/berthd/berth/internal/cli/runspec"
)

func (a *App) pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "fetch images from a registry and unpack them",
		ArgsUsage: "IMAGE…",
		Category:  "Images",
		Description: `A registry on this machine (localhost, 127.0.0.0/8, ::1) is spoken to in plain
HTTP. Examples:
  berth pull alpine
  berth pull --platform linux/arm64 registry.example/alpine:3.20
  berth pull --user me --hosts-dir /etc/containerd/certs.d registry.example/app:1`,
		Flags: append([]cli.Flag{
			list("label", "`KEY=VALUE` on the image"),
			&cli.StringFlag{Name: "snapshotter", Usage: "`NAME` of the snapshotter", Sources: cli.EnvVars("CONTAINERD_SNAPSHOTTER")},
		}, registryFlags()...),
		UseShortOptionHandling: true,
		Action: func(ctx context.Context, cmd *cli.Command) error {
			req, err := a.newPullRequest(ctx, cmd)
			if err != nil {
				return err
			}
			return a.each(ctx, cmd, "image", func(ctx context.Context, s *session, name string) error {
				r := req
				r.name = name
				return s.pull(ctx, r)
			})
		},
	}
}

// registryFlags are those of pull and push.
func registryFlags() []cli.Flag {
	return append([]cli.Flag{
		list("platform", "move it for a `PLATFORM`, e.g. linux/arm64; several are possible"),
		yes("all-platforms", "move it for every platform"),
		yes("plain-http", "speak HTTP without TLS"),
		str("user", "`NAME[:PASSWORD]` at the registry; asked for where it is left out", "u"),
		yes("password-stdin", "read the password from standard input"),
		str("hosts-dir", "`DIR` with the registries' configuration (hosts.toml)"),
	}, progressFlags("name")...)
}

// pullRequest is an image to fetch. The zero value of the rest is a public
// image for this host.
type pullRequest struct {
	name string
	// platform is what --platform of run says; platforms what pull's says.
	platform     string
	platforms    []ocispec.Platform
	allPlatforms bool
	plainHTTP    bool
	user, secret string
	hostsDir     string
	snapshotter  string
	labels       map[string]string
	// result: print the image's name too; else nothing but progress.
	result   bool
	progress progressMode
}

func (a *App) newPullRequest(ctx context.Context, cmd *cli.Command) (pullRequest, error) {
	r := pullRequest{
		allPlatforms: cmd.Bool("all-platforms"), plainHTTP: cmd.Bool("plain-http"),
		hostsDir: cmd.String("hosts-dir"), snapshotter: cmd.String("snapshotter"),
		result: true,
	}
	var err error
	if r.progress, err = readProgress(cmd); err != nil {
		return r, err
	}
	for _, s := range cmd.StringSlice("platform") {
		p, err := platforms.Parse(s)
		if err != nil {
			return r, fmt.Errorf("platform %q: %w (use os/arch[/variant])", s, err)
		}
		r.platforms = append(r.platforms, p)
	}
	if r.allPlatforms && len(r.platforms) > 0 {
		return r, usageError("--platform and --all-platforms exclude each other")
	}
	if r.hostsDir != "" {
		dir, err := filepath.Abs(r.hostsDir) // the daemon reads it
		if err != nil {
			return r, fmt.Errorf("hosts-dir: %w", err)
		}
		r.hostsDir = dir
	}
	if r.labels, err = runspec.ParseLabels(cmd.StringSlice("label"), ""); err != nil {
		return r, err
	}
	r.user, r.secret, err = a.credentials(ctx, cmd.String("user"), cmd.Bool("password-stdin"))
	return r, err
}

// credentials completes a user's name with a password.
func (a *App) credentials(ctx context.Context, user string, fromStdin bool) (name, secret string, err error) {
	if user == "" {
		if fromStdin {
			return "", "", usageError("--password-stdin needs --user")
		}
		return "", "", nil
	}
	name, secret, has := strings.Cut(user, ":")
	switch {
	case has:
		return name, secret, nil
	case fromStdin:
	case !attach.IsTerminal(a.Stdin):
		return "", "", usageError("a password for %q is missing (use --user NAME:PASSWORD or --password-stdin)", name)
	default:
		con, err := console.ConsoleFromFile(a.Stdin)
		if err != nil {
			return "", "", fmt.Errorf("terminal: %w", err)
		}
		defer func() { _ = con.Reset() }()
		if err := con.DisableEcho(); err != nil {
			return "", "", fmt.Errorf("terminal: %w", err)
		}
		fmt.Fprintf(a.Stderr, "Password for %s: ", name)
		defer fmt.Fprintln(a.Stderr)
	}
	line, err := a.readLine(ctx)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", "", fmt.Errorf("password: %w", err)
	}
	return name, strings.TrimRight(line, "\r\n"), nil
}

// pull fetches and unpacks one image through the daemon.
func (s *session) pull(ctx context.Context, r pullRequest) error {
	name, err := fullName(r.name)
	if err != nil {
		return err
	}
	src, err := r.registry(ctx, name)
	if err != nil {
		return err
	}
	store, err := r.store(name)
	if err != nil {
		return err
	}
	progress := s.progress(r.progress)
	err = s.transfer(ctx, src, store, progress)
	progress.end()
	switch {
	case errdefs.IsNotFound(err):
		return say(errdefs.ErrNotFound, "image %q: the registry does not have it, or not for this platform (is the name right? %s)", name, oneLine(err))
	case errors.Is(err, context.Canceled):
		return err
	case err != nil:
		return fmt.Errorf("image %q: pull: %w", name, err)
	}
	if r.result {
		s.done(r.progress, name)
	}
	return nil
}

// registry is where an image with this full name comes from or goes to.
func (r *pullRequest) registry(ctx context.Context, name string) (*registry.OCIRegistry, error) {
	opts := []registry.Opt{registry.WithHostDir(r.hostsDir)}
	if r.user != "" || r.secret != "" {
		opts = append(opts, registry.WithCredentials(staticCredentials{r.user, r.secret}))
	}
	if r.plainHTTP || loopback(name) {
		opts = append(opts, registry.WithDefaultScheme("http"))
	}
	reg, err := registry.NewOCIRegistry(ctx, name, opts...)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", name, err)
	}
	return reg, nil
}

// store says what to keep of an image.
func (r *pullRequest) store(name string) (*image.Store, error) {
	ps := r.platforms
	if r.platform != "" {
		p, err := platforms.Parse(r.platform)
		if err != nil {
			return nil, fmt.Errorf("platform %q: %w (use os/arch[/variant])", r.platform, err)
		}
		ps = append(ps, p)
	}
	unpack := ps
	if len(unpack) == 0 {
		unpack = []ocispec.Platform{platforms.DefaultSpec()}
	}
	opts := []image.StoreOpt{image.WithAllMetadata}
	if !r.allPlatforms {
		opts = append(opts, image.WithPlatforms(unpack...))
	}
	for _, p := range unpack {
		opts = append(opts, image.WithUnpack(p, r.snapshotter))
	}
	if len(r.labels) > 0 {
		opts = append(opts, image.WithImageLabels(r.labels))
	}
	return image.NewStore(name, opts...), nil
}

// loopback says whether a registry is on this machine.
func loopback(name string) bool {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	host := reference.Domain(ref)
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	ip := net.ParseIP(strings.Trim(host, "[]"))
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// staticCredentials implements registry.CredentialHelper.
type staticCredentials struct{ user, secret string }

func (c staticCredentials) GetCredentials(_ context.Context, _, host string) (registry.Credentials, error) {
	return registry.Credentials{Host: host, Username: c.user, Secret: c.secret}, nil
}
