package shim

import (
	"reflect"
	"testing"
	"time"

	eventsAPI "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runc/options"
	taskTypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berthd/berth/internal/container"
	"github.com/berthd/berth/task"
)

func TestEventMessage(t *testing.T) {
	at := time.Unix(1700000000, 5)
	stamp := timestamppb.New(at)
	for kind, c := range map[task.EventKind]struct {
		exec string
		want proto.Message
	}{
		task.EventCreate: {"", &eventsAPI.TaskCreate{
			ContainerID: "c", Bundle: "/b", Rootfs: []*types.Mount{{Type: "bind", Source: "/s", Target: "t", Options: []string{"ro"}}},
			IO: &eventsAPI.TaskIO{Stdin: "/i", Stdout: "/o", Stderr: "/e", Terminal: true}, Checkpoint: "/k", Pid: 7,
		}},
		task.EventStart:        {"", &eventsAPI.TaskStart{ContainerID: "c", Pid: 7}},
		task.EventExecAdded:    {"e", &eventsAPI.TaskExecAdded{ContainerID: "c", ExecID: "e"}},
		task.EventExecStarted:  {"e", &eventsAPI.TaskExecStarted{ContainerID: "c", ExecID: "e", Pid: 7}},
		task.EventPaused:       {"", &eventsAPI.TaskPaused{ContainerID: "c"}},
		task.EventResumed:      {"", &eventsAPI.TaskResumed{ContainerID: "c"}},
		task.EventCheckpointed: {"", &eventsAPI.TaskCheckpointed{ContainerID: "c", Checkpoint: "/k"}},
		task.EventOOM:          {"", &eventsAPI.TaskOOM{ContainerID: "c"}},
		task.EventExit:         {"", &eventsAPI.TaskExit{ContainerID: "c", ID: "c", Pid: 7, ExitStatus: 3, ExitedAt: stamp}},
		task.EventDelete:       {"", &eventsAPI.TaskDelete{ContainerID: "c", Pid: 7, ExitStatus: 3, ExitedAt: stamp}},
	} {
		e := task.Event{
			Kind: kind, ID: task.ID{Namespace: "ns", Container: "c"}, ExecID: c.exec, Pid: 7,
			Exit: task.Exit{Status: 3, At: at}, Bundle: "/b", Checkpoint: "/k",
			Rootfs: []task.Mount{{Type: "bind", Source: "/s", Target: "t", Options: []string{"ro"}}},
			Stdio:  task.Stdio{Stdin: "/i", Stdout: "/o", Stderr: "/e", Terminal: true},
		}
		if got := eventMessage(e); !proto.Equal(got, c.want) {
			t.Errorf("%s: %v\nwant %v", kind.Topic(), got, c.want)
		}
	}
	exec := eventMessage(task.Event{Kind: task.EventExit, ID: task.ID{Container: "c"}, ExecID: "e"})
	if want := (&eventsAPI.TaskExit{ContainerID: "c", ID: "e"}); !proto.Equal(exec, want) {
		t.Errorf("exit of an exec: %v", exec)
	}
}

func TestStatusOnTheWire(t *testing.T) {
	for from, want := range map[task.Status]taskTypes.Status{
		task.Unknown: taskTypes.Status_UNKNOWN, task.Created: taskTypes.Status_CREATED,
		task.CreatedCheckpoint: taskTypes.Status_CREATED, task.Running: taskTypes.Status_RUNNING,
		task.Pausing: taskTypes.Status_PAUSING, task.Paused: taskTypes.Status_PAUSED,
		task.Stopped: taskTypes.Status_STOPPED, task.Deleted: taskTypes.Status_STOPPED,
	} {
		if got := toStatus(from); got != want {
			t.Errorf("%s: %s", from, got)
		}
	}
}

func pack(t *testing.T, url string, m proto.Message) task.Any {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return task.Any{TypeURL: url, Value: data}
}

func TestDecodeOptions(t *testing.T) {
	given := &options.Options{
		BinaryName: "crun", Root: "/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true,
		IoUid: 1, IoGid: 2, CriuImagePath: "/i", CriuWorkPath: "/w",
	}
	want := container.Options{
		Binary: "crun", Root: "/r", SystemdCgroup: true, NoPivotRoot: true, NoNewKeyring: true,
		IOUID: 1, IOGID: 2, CriuImagePath: "/i", CriuWorkPath: "/w",
	}
	for _, url := range []string{"containerd.runc.v1.Options", "type.googleapis.com/containerd.runc.v1.Options"} {
		if got, err := decodeOptions(pack(t, url, given)); err != nil || got != want {
			t.Errorf("%s: %+v, %v", url, got, err)
		}
	}
	if got, err := decodeOptions(task.Any{}); err != nil || got != (container.Options{}) {
		t.Errorf("none: %+v, %v", got, err)
	}
	for name, bad := range map[string]task.Any{
		"foreign": {TypeURL: "some.other.Options", Value: []byte{1}},
		"untyped": {Value: []byte("{}")},
		"garbage": {TypeURL: "containerd.runc.v1.Options", Value: []byte{0xff}},
	} {
		if got, err := decodeOptions(bad); !errdefs.IsInvalidArgument(err) || got != (container.Options{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if _, err := decodeCheckpointOptions(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s, of a checkpoint: %v", name, err)
		}
	}
}

func TestDecodeCheckpointOptions(t *testing.T) {
	given := &options.CheckpointOptions{
		Exit: true, OpenTcp: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true,
		EmptyNamespaces: []string{"network"}, ImagePath: "/i", WorkPath: "/w", ParentPath: "/p",
	}
	want := container.CheckpointOptions{
		Exit: true, OpenTCP: true, ExternalUnixSockets: true, Terminal: true, FileLocks: true,
		EmptyNamespaces: []string{"network"}, ImagePath: "/i", WorkPath: "/w", ParentPath: "/p",
	}
	got, err := decodeCheckpointOptions(pack(t, "containerd.runc.v1.CheckpointOptions", given))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
