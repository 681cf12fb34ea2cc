// Demoimage writes a small OCI image made from Debian's static busybox, for
// the demo and the benches.
//
// usage: demoimage REFERENCE FILE
package main

import (
	"fmt"
	"os"

	"github.com/berthd/berth/internal/testimage"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: demoimage REFERENCE FILE")
		os.Exit(2)
	}
	if err := write(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "demoimage:", err)
		os.Exit(1)
	}
}

func write(ref, path string) (err error) {
	img, err := testimage.New(testimage.Config{})
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
