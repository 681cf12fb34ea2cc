// Demoimage writes a small OCI image made from Debian's static busybox, for
// the demo and the benches.
//
// usage: demoimage REFERENCE FILE [LAYERS MIB]
//
// With LAYERS the image has so many layers more, each with a MIB MiB of files that
// compress by half.
package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"

	"github.com/berthd/berth/internal/testimage"
)

func main() {
	var layers, mib uint64
	var err error
	if len(os.Args) == 5 {
		layers, err = strconv.ParseUint(os.Args[3], 10, 7)
		if err == nil {
			mib, err = strconv.ParseUint(os.Args[4], 10, 10)
		}
	} else if len(os.Args) != 3 {
		err = errors.New("want two or four arguments")
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "demoimage: %v\nusage: demoimage REFERENCE FILE [LAYERS MIB]\n", err)
		os.Exit(2)
	}
	var cfg testimage.Config
	for n := range int(layers) {
		cfg.Layers = append(cfg.Layers, files(n, int(mib)))
	}
	if err := write(os.Args[1], os.Args[2], cfg); err != nil {
		fmt.Fprintln(os.Stderr, "demoimage:", err)
		os.Exit(1)
	}
}

// files are one of 1 MiB for each, half of it random.
func files(layer, mib int) []testimage.File {
	random := rand.NewChaCha8([32]byte{byte(layer)})
	list := make([]testimage.File, mib)
	for i := range list {
		data := make([]byte, 1<<20)
		_, _ = random.Read(data[:len(data)/2]) // it gives all that is asked for
		list[i] = testimage.File{Name: fmt.Sprintf("srv/%d/%d", layer, i), Data: data, Mode: 0o644}
	}
	return list
}

func write(ref, path string, cfg testimage.Config) (err error) {
	img, err := testimage.New(cfg)
	if err != nil {
		return err
	}
	blobs, err := testimage.Blobs(img)
	if err != nil {
		return err
	}
	// A file that is there is whole: it gets its name last.
	f, err := os.Create(path + ".new")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = testimage.WriteArchive(f, ref, blobs)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
