package events

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
)

// maxTopic bounds a topic; the longest of containerd's has 22 characters.
const maxTopic = 512

// validateTopic wants "/name/name…", each name an identifier.
func validateTopic(topic string) error {
	rest, found := strings.CutPrefix(topic, "/")
	switch {
	case topic == "":
		return fmt.Errorf("topic must not be empty: %w", errdefs.ErrInvalidArgument)
	case len(topic) > maxTopic:
		return fmt.Errorf("topic is longer than %d bytes: %w", maxTopic, errdefs.ErrInvalidArgument)
	case !found:
		return fmt.Errorf("topic %q must start with \"/\": %w", topic, errdefs.ErrInvalidArgument)
	case rest == "":
		return fmt.Errorf("topic %q must have at least one component: %w", topic, errdefs.ErrInvalidArgument)
	}
	for name := range strings.SplitSeq(rest, "/") {
		if err := identifiers.Validate(name); err != nil {
			return fmt.Errorf("topic %q: component %q: %w", topic, name, err)
		}
	}
	return nil
}

// validateEnvelope checks what another process sent.
func validateEnvelope(env *events.Envelope) error {
	if env == nil {
		return fmt.Errorf("envelope is missing: %w", errdefs.ErrInvalidArgument)
	}
	if err := identifiers.Validate(env.Namespace); err != nil {
		return fmt.Errorf("namespace: %w", err)
	}
	if err := validateTopic(env.Topic); err != nil {
		return err
	}
	if env.Timestamp.IsZero() {
		return fmt.Errorf("topic %q: timestamp must be set: %w", env.Topic, errdefs.ErrInvalidArgument)
	}
	return nil
}
