package stdio

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berthd/berth/task"
)

// moverEnv makes the test binary a process that adopts streams.
const moverEnv = "BERTH_TEST_STDIO_MOVER"

// moverJob is the value of moverEnv. Names are the kept files from descriptor
// 3 on.
type moverJob struct {
	Stdio task.Stdio
	Names []string
}

func TestMain(m *testing.M) {
	if text := os.Getenv(moverEnv); text != "" {
		if err := runMover(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// runMover adopts streams and moves their bytes until all have ended.
func runMover(text string) error {
	var job moverJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		return err
	}
	kept := map[string]*os.File{}
	for i, name := range job.Names {
		kept[name] = os.NewFile(uintptr(3+i), name)
	}
	s, err := Adopt(context.Background(), Config{Stdio: job.Stdio}, kept)
	if err != nil {
		return err
	}
	<-s.Drained()
	return s.Close(context.Background())
}

func startMover(t *testing.T, stdio task.Stdio, kept map[string]*os.File) *exec.Cmd {
	t.Helper()
	job := moverJob{Stdio: stdio}
	cmd := exec.Command("/proc/self/exe")
	for name, f := range kept {
		job.Names = append(job.Names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		defer f.Close()
	}
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), moverEnv+"="+string(text))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

// TestKilledMoverLosesNoByte kills the process that moves the bytes, at any
// instruction, again and again.
func TestKilledMoverLosesNoByte(t *testing.T) {
	const size, rounds = 32 << 20, 8
	for _, to := range []string{"fifo", "file"} {
		t.Run(to, func(t *testing.T) {
			checkLeaks(t)
			path := mkfifo(t)
			if to == "file" {
				path = filepath.Join(t.TempDir(), "log")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			l := born(t, fifoConfig(path))
			client := openClient(t, path, os.O_RDONLY)
			c := start(t, l.now)
			l.self.die(l.now)
			want := pattern(size)
			wrote := make(chan error, 1)
			go func() {
				_, err := c.out.Write(want)
				c.exit()
				wrote <- err
			}()
			got := make([]byte, size)
			at := 0
			for round := range rounds {
				cmd := startMover(t, l.cfg.Stdio, l.keeper.handOver(t, l.cfg.Name+"/"))
				stop := (round + 1) * (size / (rounds + 1))
				eventually(t, "the mover moves", func() bool {
					n, err := client.Read(got[at:stop])
					if err != nil && err != io.EOF { // EOF is the end of a file that grows
						t.Fatal(err)
					}
					at += n
					return at == stop
				})
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
				_ = cmd.Wait()
			}
			cmd := startMover(t, l.cfg.Stdio, l.keeper.handOver(t, l.cfg.Name+"/"))
			eventually(t, "the rest arrives", func() bool {
				n, err := client.Read(got[at:])
				if err != nil && err != io.EOF {
					t.Fatal(err)
				}
				at += n
				return at == size
			})
			if err := <-wrote; err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Fatal(err)
			}
			wantBytes(t, "output", got, want)
			for _, name := range l.keeper.names() {
				l.keeper.Drop(name)
			}
			if n, err := client.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Fatalf("after the end the client reads %d, %v", n, err)
			}
		})
	}
}
