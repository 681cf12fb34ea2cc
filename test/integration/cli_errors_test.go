package integration

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/internal/testimage"
	"github.com/berthd/berth/test/harness"
)

// TestBerthBadInput checks every mistake for its one line, its exit code, and
// for leaving nothing.
func TestBerthBadInput(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	taken := d.ID("taken")
	d.MustBerth(t, "run", "-d", "--name", taken, harness.Image, "sleep", "1000")
	image := harness.Image
	for name, test := range map[string]struct {
		args []string
		code int
		want []string // in the one line
	}{
		"unknown image":     {[]string{"run", "--pull", "never", "berth.test/none:1", "true"}, 125, []string{"berth.test/none:1", "berth pull"}},
		"unknown registry":  {[]string{"run", "localhost:1/none:1", "true"}, 125, []string{"localhost:1/none:1"}},
		"invalid image":     {[]string{"run", "NOT/Valid", "true"}, 125, []string{"NOT/Valid", "lower case"}},
		"no image":          {[]string{"run"}, 125, []string{"an image is missing"}},
		"missing command":   {[]string{"run", image, "/no/such/program"}, 127, []string{"/no/such/program"}},
		"not in the path":   {[]string{"run", image, "nosuchprogram"}, 127, []string{"nosuchprogram"}},
		"not executable":    {[]string{"run", image, "/etc/passwd"}, 126, []string{"/etc/passwd", "permission denied"}},
		"no command at all": {[]string{"run", "--entrypoint", "", image}, 125, []string{"no command"}},
		"wrong user":        {[]string{"run", "-u", "nobodyhere", image, "true"}, 125, []string{"nobodyhere", "/etc/passwd"}},
		"user out of range": {[]string{"run", "-u", "4294967295", image, "true"}, 125, []string{"4294967295"}},
		"bad mount":         {[]string{"run", "-v", "/no/such/source:/x", image, "true"}, 125, []string{"/no/such/source", "create it"}},
		"relative target":   {[]string{"run", "-v", "/tmp:x", image, "true"}, 125, []string{"absolute"}},
		"mount over root":   {[]string{"run", "--mount", "type=bind,src=/tmp,dst=/", image, "true"}, 125, []string{"below /"}},
		"name taken":        {[]string{"run", "--name", taken, image, "true"}, 125, []string{taken, "berth rm"}},
		"invalid name":      {[]string{"run", "--name", "../x", image, "true"}, 125, []string{"../x", "letters and digits"}},
		"missing runtime":   {[]string{"run", "--runtime", "io.containerd.missing.v9", image, "true"}, 125, []string{"missing"}},
		"missing binary":    {[]string{"run", "--runc-binary", "/no/such/runc", image, "true"}, 125, []string{"/no/such/runc"}},
		"unknown flag":      {[]string{"run", "--nosuchflag", image, "true"}, 125, []string{"nosuchflag", "--help"}},
		"bad memory":        {[]string{"run", "-m", "lots", image, "true"}, 125, []string{"lots", "64m"}},
		"bad capability":    {[]string{"run", "--cap-add", "FLY", image, "true"}, 125, []string{"FLY"}},
		"rm with detach":    {[]string{"run", "--rm", "-d", image, "true"}, 125, []string{"--detach"}},
		"exec in nothing":   {[]string{"exec", d.ID("none"), "true"}, 125, []string{d.ID("none"), "not found"}},
		"unknown verb":      {[]string{"nosuchverb"}, 1, []string{"nosuchverb", "--help"}},
		"unknown container": {[]string{"kill", d.ID("none")}, 1, []string{d.ID("none"), "not found"}},
		"unknown signal":    {[]string{"kill", "-s", "NOSUCH", taken}, 1, []string{"NOSUCH"}},
		"used image":        {[]string{"rmi", image}, 1, []string{image, taken}},
		"no archive":        {[]string{"import", "/no/such/file"}, 1, []string{"/no/such/file"}},
		"not an archive":    {[]string{"import", "/bin/sh"}, 1, []string{"/bin/sh"}},
		"no daemon":         {[]string{"--address", "/no/such/socket", "ps"}, 1, []string{"/no/such/socket", "berthd"}},
		"bad namespace":     {[]string{"--namespace", "a/b", "ps"}, 1, []string{"a/b"}},
		"log of none":       {[]string{"logs", d.ID("none")}, 1, []string{"not found"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := d.Berth(t, test.args...)
			checkOneLine(t, r, test.code, test.want...)
		})
	}
	if out := d.MustBerth(t, "ps", "-aq"); out != taken+"\n" {
		t.Errorf("containers: %q, want %q alone", out, taken)
	}
	d.MustBerth(t, "rm", "-f", taken)
}

// checkOneLine wants a failure with one line of error that has every text.
// Lines of progress may come before it.
func checkOneLine(t *testing.T, r harness.Result, code int, want ...string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(r.Stderr, "\n"), "\n")
	var errs []string
	for _, line := range lines {
		if strings.HasPrefix(line, "berth: ") {
			errs = append(errs, line)
		}
	}
	if r.Code != code || len(errs) != 1 || lines[len(lines)-1] != errs[0] {
		t.Errorf("%s\nwant exit code %d and one line of error", r, code)
		return
	}
	for _, text := range want {
		if !strings.Contains(errs[0], text) {
			t.Errorf("%s\nwant an error with %q", r, text)
		}
	}
}

// TestBerthDamagedArchive imports archives that lie.
func TestBerthDamagedArchive(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	whole, err := os.ReadFile(harness.ImageTar(t))
	if err != nil {
		t.Fatal(err)
	}
	// A layer of its own: what is here already is not read again.
	img, err := testimage.New(testimage.Config{Layers: [][]testimage.File{{{Name: "file", Data: bytes.Repeat([]byte("layer"), 1000)}}}})
	if err != nil {
		t.Fatal(err)
	}
	blobs, err := testimage.Blobs(img)
	if err != nil {
		t.Fatal(err)
	}
	var wrong bytes.Buffer
	blobs[1].Data = bytes.Clone(blobs[1].Data)
	blobs[1].Data[len(blobs[1].Data)/2] ^= 1
	if err := testimage.WriteArchive(&wrong, "berth.test/damaged:1", blobs); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"empty": nil, "truncated": whole[:len(whole)/2], "wrong digest": wrong.Bytes(),
	} {
		t.Run(name, func(t *testing.T) {
			r := d.Exec(t, string(data), d.Programs.Berth, "import")
			checkOneLine(t, r, 1, "standard input")
		})
	}
	if out := d.MustBerth(t, "images", "-q"); out != harness.Image+"\n" {
		t.Errorf("images: %q", out)
	}
}

// TestBerthDiskFull imports more than the disk holds.
func TestBerthDiskFull(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{RootSize: 4 << 20, NoImage: true})
	big := make([]byte, 8<<20)
	for i := range big {
		big[i] = byte(i * 7919 >> 3)
	}
	archive := testimage.Archive(t, "berth.test/big:1", testimage.Config{Layers: [][]testimage.File{{{Name: "big", Mode: 0o644, Data: big}}}})
	checkOneLine(t, d.Berth(t, "import", archive), 1, "no space left")
}

// TestBerthInterrupted ends a command while it waits: 130, and nothing is left.
func TestBerthInterrupted(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{})
	p := d.Spawn(t, d.Programs.Berth, "events")
	// It does not say when it listens: tag until it has seen one.
	harness.Await(t, 30*time.Second, "an event", func() bool {
		d.MustBerth(t, "tag", harness.Image, "berth.test/seen:1")
		return strings.Contains(p.Stdout(), "berth.test/seen:1")
	})
	p.Signal(t, syscall.SIGINT)
	if r := p.Wait(t); r.Code != 130 {
		t.Error(r)
	}
	d.MustBerth(t, "rmi", "berth.test/seen:1")
}
