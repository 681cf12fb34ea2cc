package events_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	coreevents "github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"

	"github.com/berthd/berth/internal/events"
)

const patience = 10 * time.Second

func inNamespace(t *testing.T, ns string) context.Context {
	t.Helper()
	return namespaces.WithNamespace(t.Context(), ns)
}

func start(id string) *eventsapi.TaskStart { return &eventsapi.TaskStart{ContainerID: id, Pid: 1} }

func receive(t *testing.T, ch <-chan *coreevents.Envelope, errs <-chan error) *coreevents.Envelope {
	t.Helper()
	select {
	case env := <-ch:
		return env
	case err := <-errs:
		t.Fatalf("subscription ended: %v", err)
	case <-time.After(patience):
		t.Fatal("no event came")
	}
	return nil
}

func ending(t *testing.T, errs <-chan error) error {
	t.Helper()
	select {
	case err := <-errs:
		if _, open := <-errs; open {
			t.Error("the error channel stays open after the end")
		}
		return err
	case <-time.After(patience):
		t.Fatal("the subscription does not end")
	}
	return nil
}

func TestSubscribersSeeMatchingEventsInOrder(t *testing.T) {
	x := events.NewExchange(events.Config{})
	defer x.Close()
	ctx, cancel := context.WithCancel(inNamespace(t, "blue"))
	defer cancel()

	all, allErrs := x.Subscribe(ctx)
	some, someErrs := x.Subscribe(ctx, "namespace==red", `topic~=|^/tasks/|,event.container_id==c7`)

	for i := range 10 {
		if err := x.Publish(ctx, "/tasks/start", start(fmt.Sprintf("c%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Publish(inNamespace(t, "red"), "/images/create", &eventsapi.ImageCreate{Name: "i"}); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		env := receive(t, all, allErrs)
		v, err := typeurl.UnmarshalAny(env.Event)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := v.(*eventsapi.TaskStart).ContainerID, fmt.Sprintf("c%d", i); got != want || env.Namespace != "blue" {
			t.Fatalf("event %d is of %s in namespace %s, want %s", i, got, env.Namespace, want)
		}
		if time.Since(env.Timestamp) > patience {
			t.Errorf("event %d has time %s", i, env.Timestamp)
		}
	}
	if env := receive(t, some, someErrs); env.Topic != "/tasks/start" {
		t.Errorf("first filtered event is %s, want the start of c7", env.Topic)
	}
	if env := receive(t, some, someErrs); env.Topic != "/images/create" || env.Namespace != "red" {
		t.Errorf("second filtered event is %s of %s", env.Topic, env.Namespace)
	}

	cancel()
	if err := ending(t, allErrs); err != nil {
		t.Errorf("a cancelled subscription ends with %v, want nil", err)
	}
	ending(t, someErrs)
}

func TestSlowSubscriberIsCutOff(t *testing.T) {
	tests := []struct {
		name string
		cfg  events.Config
	}{
		{"events", events.Config{QueueEvents: 8}},
		{"bytes", events.Config{QueueBytes: 400}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := events.NewExchange(tt.cfg)
			defer x.Close()
			ctx := inNamespace(t, "default")
			_, slowErrs := x.Subscribe(ctx)
			quick, quickErrs := x.Subscribe(ctx)
			for i := range 20 {
				if err := x.Publish(ctx, "/tasks/start", start(fmt.Sprintf("c%d", i))); err != nil {
					t.Fatal(err)
				}
				receive(t, quick, quickErrs)
			}
			if err := ending(t, slowErrs); !errdefs.IsResourceExhausted(err) {
				t.Errorf("slow subscriber ends with %v, want ResourceExhausted", err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	x := events.NewExchange(events.Config{})
	ctx := inNamespace(t, "default")
	payload, err := typeurl.MarshalAny(start("c"))
	if err != nil {
		t.Fatal(err)
	}
	good := coreevents.Envelope{Namespace: "default", Topic: "/a", Timestamp: time.Now(), Event: payload}
	for name, spoil := range map[string]func(*coreevents.Envelope){
		"no namespace":    func(e *coreevents.Envelope) { e.Namespace = "" },
		"bad namespace":   func(e *coreevents.Envelope) { e.Namespace = "../x" },
		"no topic":        func(e *coreevents.Envelope) { e.Topic = "" },
		"relative topic":  func(e *coreevents.Envelope) { e.Topic = "tasks/start" },
		"empty component": func(e *coreevents.Envelope) { e.Topic = "/tasks//start" },
		"only a slash":    func(e *coreevents.Envelope) { e.Topic = "/" },
		"no time":         func(e *coreevents.Envelope) { e.Timestamp = time.Time{} },
	} {
		env := good
		spoil(&env)
		if err := x.Forward(ctx, &env); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: Forward gives %v, want InvalidArgument", name, err)
		}
	}
	if err := x.Forward(ctx, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Forward(nil) gives %v", err)
	}
	if err := x.Publish(t.Context(), "/tasks/start", start("c")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Publish without a namespace gives %v, want FailedPrecondition", err)
	}
	if err := x.Publish(ctx, "tasks", start("c")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Publish with a bad topic gives %v", err)
	}
	_, errs := x.Subscribe(ctx, "topic==\"")
	if err := ending(t, errs); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a bad filter gives %v", err)
	}

	_, errs = x.Subscribe(ctx)
	x.Close()
	if err := ending(t, errs); !errdefs.IsUnavailable(err) {
		t.Errorf("a closed exchange ends subscriptions with %v, want Unavailable", err)
	}
	if err := x.Forward(ctx, &good); !errdefs.IsUnavailable(err) {
		t.Errorf("Forward after Close gives %v", err)
	}
	_, errs = x.Subscribe(ctx)
	if err := ending(t, errs); !errdefs.IsUnavailable(err) {
		t.Errorf("Subscribe after Close gives %v", err)
	}
}

func TestManyPublishersOneOrder(t *testing.T) {
	x := events.NewExchange(events.Config{})
	defer x.Close()
	ctx := inNamespace(t, "default")
	a, aErrs := x.Subscribe(ctx)
	b, bErrs := x.Subscribe(ctx)
	var wg sync.WaitGroup
	const publishers, each = 8, 100
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				if err := x.Publish(ctx, "/tasks/start", start(fmt.Sprintf("c%d.%d", p, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for i := range publishers * each {
		if one, two := receive(t, a, aErrs), receive(t, b, bErrs); one != two {
			t.Fatalf("event %d differs between two subscribers", i)
		}
	}
}
