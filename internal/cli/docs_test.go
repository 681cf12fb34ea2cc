package cli

import (
	"strings"
	"testing"
)

// TestDocs wants words for each verb and option.
func TestDocs(t *testing.T) {
	for _, p := range pagesOf((&App{}).root(), "berth") {
		if p.usage == "" || len(p.text) == 0 && p.name != "berth image" {
			t.Errorf("%s has no description", p.name)
		}
		for _, o := range p.opts {
			if len(strings.Fields(o.help)) < 2 {
				t.Errorf("%s %s: %q says too little", p.name, o.names, o.help)
			}
		}
	}
}

// TestMan lets nothing in a text become a request of roff.
func TestMan(t *testing.T) {
	p := docPage{name: "berth x", usage: "a-b", text: []string{".so /etc/passwd\n'x \\fB", "berth x"}, code: []bool{false, true}, opts: []docOption{{"--a, -b", "c"}}}
	want := `.TH BERTH\-X 1 "" Berth "User Commands"
.SH NAME
berth\-x \- a\-b
.SH SYNOPSIS

.SH DESCRIPTION
.PP
\&.so /etc/passwd
\&'x \efB
.RS
.nf
berth x
.fi
.RE
.SH OPTIONS
.TP
\-\-a, \-b
c
.SH SEE ALSO
.BR berth (1)
`
	if got := string(p.man()); got != want {
		t.Errorf("the page is\n%s", got)
	}
}
