package runspec

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Port is a port of the host that leads into the container.
type Port struct {
	// HostIP is the zero address for every one.
	HostIP          netip.Addr `json:"hostIP,omitzero"`
	Host, Container uint16
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string
}

// ParsePort reads docker's "[IP:]HOST:CONTAINER[/PROTOCOL]". Ranges of the same
// length, as in "8000-8002:80-82", give a port each.
func ParsePort(s string) ([]Port, error) {
	bad := fmt.Errorf("invalid port %q (use [IP:]HOST:CONTAINER[/tcp|udp|sctp], e.g. 127.0.0.1:8080:80)", s)
	text, proto, has := strings.Cut(s, "/")
	if !has {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" && proto != "sctp" {
		return nil, bad
	}
	rest, inside, ok := cutLast(text, ":")
	if !ok {
		return nil, bad
	}
	var ip netip.Addr
	outside := rest
	if addr, port, ok := cutLast(rest, ":"); ok {
		var err error
		if ip, err = netip.ParseAddr(strings.Trim(addr, "[]")); err != nil || ip.Zone() != "" {
			return nil, bad
		}
		outside = port
	}
	hostLo, hostHi, ok1 := portRange(outside)
	lo, hi, ok2 := portRange(inside)
	if !ok1 || !ok2 || hostHi-hostLo != hi-lo {
		return nil, bad
	}
	var list []Port
	for i := range int(hi-lo) + 1 {
		list = append(list, Port{HostIP: ip, Host: hostLo + uint16(i), Container: lo + uint16(i), Protocol: proto})
	}
	return list, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func portRange(s string) (lo, hi uint16, ok bool) {
	first, last, two := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := a, error(nil)
	if two {
		b, errB = strconv.ParseUint(last, 10, 16)
	}
	return uint16(a), uint16(b), errA == nil && errB == nil && a > 0 && b >= a
}

// ParseHost reads docker's "NAME:IP" as a line of /etc/hosts.
func ParseHost(s string) (string, error) {
	name, addr, ok := strings.Cut(s, ":")
	ip, err := netip.ParseAddr(strings.Trim(addr, "[]"))
	if !ok || err != nil || ip.Zone() != "" || !hostName(name) {
		return "", fmt.Errorf("invalid host %q (use NAME:IP, e.g. db:10.0.0.7)", s)
	}
	return ip.String() + "\t" + name, nil
}

// ParseDNS reads the address of a name server.
func ParseDNS(s string) (string, error) {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		return "", fmt.Errorf("invalid name server %q (use its IP address)", s)
	}
	return ip.String(), nil
}

// hostName takes what may stand in a resolver's files without being two words.
func hostName(s string) bool {
	return s != "" && len(s) <= 253 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_") == ""
}

// ParseDomain reads a search domain.
func ParseDomain(s string) (string, error) {
	if !hostName(s) {
		return "", fmt.Errorf("invalid search domain %q", s)
	}
	return s, nil
}

// ParseResolvOption reads an option of resolv.conf, e.g. "ndots:2".
func ParseResolvOption(s string) (string, error) {
	name, value, _ := strings.Cut(s, ":")
	if !hostName(name) || value != "" && !hostName(value) {
		return "", fmt.Errorf("invalid option %q of resolv.conf (e.g. ndots:2)", s)
	}
	return s, nil
}

// Restart is when a container is to be started again.
type Restart struct {
	// Policy is "no", "always", "on-failure" or "unless-stopped".
	Policy string
	// Count is the most restarts after a failure, 0 for no limit.
	Count int
}

// ParseRestart reads docker's "--restart".
func ParseRestart(s string) (Restart, error) {
	name, count, has := strings.Cut(s, ":")
	r := Restart{Policy: name}
	var ok bool
	switch {
	case name == "on-failure" && has:
		n, err := strconv.ParseUint(count, 10, 31)
		r.Count, ok = int(n), err == nil && n > 0
	case !has:
		ok = name == "no" || name == "always" || name == "on-failure" || name == "unless-stopped"
	}
	if !ok {
		return Restart{}, fmt.Errorf("invalid restart policy %q (use no, always, unless-stopped or on-failure[:COUNT])", s)
	}
	return r, nil
}

// String writes the policy as it was read.
func (r Restart) String() string {
	if r.Count > 0 {
		return r.Policy + ":" + strconv.Itoa(r.Count)
	}
	return r.Policy
}
