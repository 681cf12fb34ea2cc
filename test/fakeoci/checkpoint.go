package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

// imageFile is all that a checkpoint consists of.
const imageFile = "fakeoci-checkpoint.json"

func criuFlags(flags *flag.FlagSet, imagePath, workPath *string) {
	flags.StringVar(imagePath, "image-path", "", "")
	flags.StringVar(workPath, "work-path", "", "")
	for _, name := range []string{"parent-path", "manage-cgroups-mode"} {
		flags.String(name, "", "")
	}
	for _, name := range []string{"tcp-established", "ext-unix-sk", "shell-job", "file-locks"} {
		flags.Bool(name, false, "")
	}
	flags.Func("empty-ns", "", func(string) error { return nil })
}

// writeLog leaves a log as CRIU does.
func writeLog(work, name string) error {
	if work == "" {
		return nil
	}
	err := os.WriteFile(filepath.Join(work, name), []byte("(00.000001) Error (fakeoci): as ordered\n"), 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return nil // the directory: CRIU would not come to run
	}
	return err
}

func checkpoint(r *runtime, args []string) error {
	var image, work string
	flags := newFlags(r.op)
	criuFlags(flags, &image, &work)
	leave := flags.Bool("leave-running", false, "")
	preDump := flags.Bool("pre-dump", false, "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := r.onlyID(flags.Args()); err != nil {
		return err
	}
	if err := writeLog(work, "dump.log"); err != nil {
		return err
	}
	return r.do(func() error {
		c, err := r.load()
		if err != nil {
			return err
		}
		if s := r.status(c); s != "running" && s != "paused" {
			return fmt.Errorf("Container cannot be checkpointed in %s state", s) //nolint:staticcheck // runc's words
		}
		data, err := json.Marshal(c)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(image, imageFile), data, 0o600); err != nil {
			return err
		}
		if *leave || *preDump {
			return nil
		}
		return r.killAll()
	})
}

func restore(r *runtime, args []string) error {
	f, err := r.spawnFlags(args)
	if err != nil {
		return err
	}
	if err := writeLog(f.workPath, "restore.log"); err != nil {
		return err
	}
	return r.do(func() error {
		if _, err := os.Stat(filepath.Join(f.imagePath, imageFile)); err != nil {
			return errors.Join(errors.New("criu failed: no image"), err)
		}
		pidFile := f.pidFile
		f.pidFile = ""
		if err := r.create(f); err != nil {
			return err
		}
		c, err := r.load()
		if err != nil {
			return err
		}
		if err := r.release(c); err != nil {
			return err
		}
		return r.writePid(pidFile, c.Pid)
	})
}
