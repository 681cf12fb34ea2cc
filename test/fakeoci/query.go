package main

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// shown is a container as state and list print it.
type shown struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Pid         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func (r *runtime) show(c *container) shown {
	s := shown{
		OCIVersion: c.OCIVersion, ID: c.ID, Pid: c.Pid, Status: r.status(c), Bundle: c.Bundle, Rootfs: c.Rootfs,
		Created: c.Created, Annotations: c.Annotations,
	}
	if s.Status == "stopped" {
		s.Pid = 0
	}
	return s
}

func state(r *runtime, args []string) error {
	if err := r.onlyID(args); err != nil {
		return err
	}
	return r.do(func() error {
		c, err := r.load()
		if err != nil {
			return err
		}
		return r.print(r.show(c))
	})
}

func list(r *runtime, args []string) error {
	flags := newFlags(r.op)
	format := flags.String("format", "table", "")
	quiet := flags.Bool("q", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	return r.do(func() error {
		all, err := r.containers()
		if err != nil {
			return err
		}
		if *format == "json" {
			return r.print(all)
		}
		for _, c := range all {
			if *quiet {
				fmt.Fprintln(r.stdout, c.ID)
				continue
			}
			fmt.Fprintf(r.stdout, "%s\t%d\t%s\t%s\n", c.ID, c.Pid, c.Status, c.Bundle)
		}
		return nil
	})
}

func (r *runtime) containers() ([]shown, error) {
	entries, err := os.ReadDir(r.root)
	if err != nil {
		return nil, err
	}
	all := []shown{}
	for _, e := range entries {
		one := &runtime{root: r.root, id: e.Name()}
		if c, err := one.load(); e.IsDir() && err == nil {
			all = append(all, one.show(c))
		}
	}
	return all, nil
}

func ps(r *runtime, args []string) error {
	flags := newFlags(r.op)
	format := flags.String("format", "table", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := r.onlyID(flags.Args()); err != nil {
		return err
	}
	return r.do(func() error {
		if _, err := r.load(); err != nil {
			return err
		}
		pids, err := r.pids()
		if err != nil {
			return err
		}
		if *format == "json" {
			return r.print(pids)
		}
		for _, pid := range pids {
			fmt.Fprintln(r.stdout, pid)
		}
		return nil
	})
}

// update keeps the last resources in the state directory, where a test can
// read them.
func update(r *runtime, args []string) error {
	flags := newFlags(r.op)
	path := flags.String("resources", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := r.onlyID(flags.Args()); err != nil {
		return err
	}
	return r.do(func() error {
		c, err := r.load()
		if err != nil {
			return err
		}
		if r.status(c) == "stopped" {
			return errNotRunning
		}
		data, err := readResources(*path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(r.dir(), "resources.json"), data, 0o600)
	})
}

func readResources(path string) ([]byte, error) {
	var in io.Reader = os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var res specs.LinuxResources
	if err := json.NewDecoder(in).Decode(&res); err != nil {
		return nil, err
	}
	return json.Marshal(res)
}

//go:embed features.json
var defaultFeatures []byte

// printFeatures prints the file features.json of the root, or the default.
func printFeatures(r *runtime, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("flag provided but not defined: %s", args[0])
	}
	return r.do(func() error {
		path := os.Getenv("FAKEOCI_FEATURES")
		if path == "" {
			path = filepath.Join(r.root, "features.json")
		}
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			data, err = defaultFeatures, nil
		}
		if err != nil {
			return err
		}
		_, err = r.stdout.Write(data)
		return err
	})
}

func (r *runtime) print(v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = r.stdout.Write(append(data, '\n'))
	return err
}
