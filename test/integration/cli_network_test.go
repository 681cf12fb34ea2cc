package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/test/harness"
)

// testNetwork is a bridge whose leases are in a directory of the test's.
const testNetwork = `{"cniVersion": "1.0.0", "name": "%s", "plugins": [
  {"type": "bridge", "bridge": "berthtest0", "isGateway": true, "ipMasq": true, "dns": {"nameservers": ["10.9.8.7"]},
   "ipam": {"type": "host-local", "dataDir": "%s", "ranges": [[{"subnet": "10.86.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}`

// TestCLINetwork attaches containers by the real CNI plugins, in a network
// namespace that the daemon has for itself.
func TestCLINetwork(t *testing.T) {
	t.Parallel()
	for _, kind := range []harness.Kind{harness.Stock, harness.Berth} {
		t.Run(string(kind), func(t *testing.T) {
			d := harness.Start(t, harness.Config{Kind: kind, NetNS: true})
			testNetworkOf(t, d)
		})
	}
}

func testNetworkOf(t *testing.T, d *harness.Daemon) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "10-test.conflist"), fmt.Sprintf(testNetwork, d.Namespace, filepath.Join(dir, "leases")))
	leases := func() (list []string) {
		all, _ := filepath.Glob(filepath.Join(dir, "leases", d.Namespace, "10.*"))
		for _, name := range all {
			list = append(list, filepath.Base(name))
		}
		return list
	}
	none := func(what string) {
		t.Helper()
		harness.Await(t, 30*time.Second, "the address given back after "+what, func() bool { return len(leases()) == 0 })
	}
	run := func(args ...string) harness.Result {
		return d.Exec(t, "", append([]string{"env", "NETCONFPATH=" + dir, d.Programs.Berth, "run"}, args...)...)
	}
	web := d.ID("web")
	r := run("-d", "--name", web, "-p", "127.0.0.1:8080:80", "--add-host", "db:10.0.0.7", harness.Image, "sh", "-c", "echo served >/index.html; httpd -f -p 80 -h /")
	if r.Code != 0 {
		t.Fatal(r)
	}
	var list []container
	if err := json.Unmarshal([]byte(d.MustBerth(t, "inspect", web)), &list); err != nil {
		t.Fatal(err)
	}
	if len(list[0].Network.Addresses) != 1 || len(leases()) != 1 || list[0].Network.Addresses[0] != leases()[0] {
		t.Fatalf("addresses %v, leases %v", list[0].Network.Addresses, leases())
	}
	ip := list[0].Network.Addresses[0]
	// Its own files, what another container gets, and what the host gets.
	out := d.MustBerth(t, "exec", web, "cat", "/etc/hosts", "/etc/resolv.conf")
	for _, want := range []string{"10.0.0.7\tdb\n", ip + "\t" + web, "nameserver 10.9.8.7\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("the container's files: %q, want %q", out, want)
		}
	}
	fetch := "i=0; until wget -q -O - http://%s/index.html; do i=$((i+1)); [ $i -lt 100 ] || exit 1; sleep 0.1; done"
	if r := run("--rm", "--cni", harness.Image, "sh", "-c", fmt.Sprintf(fetch, ip)); r.Stdout != "served\n" {
		t.Errorf("from another container: %s", r)
	}
	if r := run("--rm", "--net", "container:"+web, harness.Image, "sh", "-c", fmt.Sprintf(fetch, "127.0.0.1")); r.Stdout != "served\n" {
		t.Errorf("from the same network: %s", r)
	}
	r = d.Exec(t, "", "nsenter", "-t", fmt.Sprint(d.PID()), "-n", "busybox", "sh", "-c", "ip link set lo up; "+fmt.Sprintf(fetch, "127.0.0.1:8080"))
	if r.Stdout != "served\n" {
		t.Errorf("through the port of 127.0.0.1: %s", r)
	}
	if len(leases()) != 1 {
		t.Errorf("leases of containers that ended: %v", leases())
	}
	d.MustBerth(t, "rm", "-f", web)
	none("rm")

	all := d.ID("all")
	if r := run("-d", "--name", all, "-p", "8081:80", harness.Image, "sh", "-c", "echo served >/index.html; httpd -f -p 80 -h /"); r.Code != 0 {
		t.Fatal(r)
	}
	r = d.Exec(t, "", "nsenter", "-t", fmt.Sprint(d.PID()), "-n", "busybox", "sh", "-c", fmt.Sprintf(fetch, "10.86.0.1:8081"))
	if r.Stdout != "served\n" {
		t.Errorf("through the published port: %s", r)
	}
	// A daemon that dies keeps nothing from being given back, nor does another
	// client that deletes the container.
	d.Kill(t)
	d.Boot(t)
	d.MustBerth(t, "kill", all)
	d.MustBerth(t, "wait", all)
	d.Ctr(t, "tasks", "delete", "-f", all) // after its restart stock has done so already
	none("ctr's delete")
	d.MustBerth(t, "start", all)
	if len(leases()) != 1 {
		t.Errorf("leases after a start: %v", leases())
	}
	d.MustBerth(t, "rm", "-f", all)
	none("a second run")
	if left, _ := filepath.Glob("/var/lib/cni/results/*" + d.Namespace + "*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if left, err := os.ReadDir(filepath.Join(d.Root, "files")); err == nil {
		t.Errorf("left: %v", left)
	}
}

// TestCLINetworkDefault writes a network where the host has none, and names the
// package where it cannot.
func TestCLINetworkDefault(t *testing.T) {
	t.Parallel()
	d := harness.Start(t, harness.Config{NetNS: true})
	dir := t.TempDir()
	env := []string{"env", "NETCONFPATH=" + filepath.Join(dir, "conf")}
	bad := append(append([]string{}, env...), "CNI_PATH="+dir, d.Programs.Berth, "run", "--cni", harness.Image, "true")
	checkOneLine(t, d.Exec(t, "", bad...), 125, "containernetworking-plugins", dir)
	good := append(append([]string{}, env...), d.Programs.Berth, "run", "--rm", "--net", "cni", harness.Image, "sh", "-c", "ip -o addr show eth0 | grep -c ' inet 10.87.'")
	if r := d.Exec(t, "", good...); r.Stdout != "1\n" {
		t.Error(r)
	}
	if _, err := os.Stat(filepath.Join(dir, "conf", "87-berth.conflist")); err != nil {
		t.Error(err)
	}
}
