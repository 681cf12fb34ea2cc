package executor

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2"
)

// What cgroup v2 counts is what the sample says, in its units. The files are made
// up: each figure shows where it comes from.
func TestSampleV2(t *testing.T) {
	dir := t.TempDir()
	const pressure = "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=33\n"
	for name, text := range map[string]string{
		"cpu.stat":     "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_periods 9\nnr_throttled 4\nthrottled_usec 5\n",
		"cpu.pressure": pressure, "memory.pressure": pressure, "io.pressure": pressure,
		"memory.current": "1000\n", "memory.peak": "2000\n", "memory.swap.current": "30\n",
		"memory.stat": "anon 11\nfile 12\nkernel_stack 13\nsock 14\nshmem 15\nfile_mapped 16\nfile_dirty 17\nfile_writeback 18\n" +
			"slab 19\npgscan 20\npgsteal 21\npgfault 22\npgmajfault 23\n",
		"memory.events": "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\n",
		"io.stat":       "8:0 rbytes=100 wbytes=200 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=5 wios=6 dbytes=0 dios=0\n",
		"pids.current":  "6\n", "pids.max": "max\n", "cgroup.controllers": "cpu io memory pids\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := cgroup2.Load("/", cgroup2.WithMountpoint(dir))
	if err != nil {
		t.Fatal(err)
	}
	s, err := sampleV2(c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"usageNanos":300000`, `"userNanos":200000`, `"systemNanos":100000`, `"nrPeriods":9`, `"nrThrottled":4`, `"throttledNanos":5000`,
		`"swapBytes":30`, `"anon":11`, `"file":12`, `"kernelStack":13`, `"sock":14`, `"shmem":15`, `"fileMapped":16`, `"fileDirty":17`,
		`"fileWriteback":18`, `"slab":19`, `"pgscan":20`, `"pgsteal":21`, `"pgfault":22`, `"pgmajfault":23`, `"peak":2000`,
		`"lowEvents":1`, `"highEvents":2`, `"maxEvents":3`, `"oomEvents":4`, `"oomKillEvents":5`,
		`"readBytes":101`, `"writeBytes":202`, `"readIOs":8`, `"writeIOs":10`, `"current":6`, `"avg10":1.5`, `"total":33`,
	} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %s in %s", want, b)
		}
	}
	if n := strings.Count(string(b), `"total":77`); n != 3 {
		t.Errorf("%d of 3 pressures in %s", n, b)
	}
}
