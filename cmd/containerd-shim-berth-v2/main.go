// Command containerd-shim-berth-v2 is Berth's shim: it runs the containers of
// a group through an OCI runtime. A daemon starts it; people do not.
package main

import "github.com/berthd/berth/engine/shim"

func main() { shim.Main() }
