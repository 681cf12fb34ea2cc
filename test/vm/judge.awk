# Judges what a lane's machine has written:
#
#   awk -v lane=NAME -f judge.awk EXPECTED OUTPUT CONSOLE
#
# EXPECTED has "package test" lines. Every one of them must have passed in OUTPUT;
# no test may have failed or been skipped; the guest must have come to its end; and
# under systemd, whose messages are in CONSOLE, no process was left for SIGKILL.

FILENAME == ARGV[1] { expected[$1 " " $2] = 1; next }
FILENAME == ARGV[3] {
	if (/Sending SIGKILL to PID/ && /containerd-shim|berth|\(sh\)|\(sleep\)/) bad("the shutdown waited: " $0)
	next
}
$1 == "@@vm" && $2 == "begin" { package = $3; next }
$1 == "@@vm" && $2 == "end" { if ($4 != 0) bad(package ": exit status " $4); next }
$1 == "@@vm" && $2 == "late" { late = 1; next }
$1 == "@@vm" && $2 == "done" { done = 1; next }
/^--- PASS: / { passed[package " " $3] = 1; next }
/^ *--- FAIL: / { failed++; bad(package " " $3 " failed"); next }
/^ *--- SKIP: / { skipped++; bad(package " " $3 " was skipped"); next }

function bad(text) { print "vm: lane " lane ": " text; wrong = 1 }

END {
	for (test in expected) {
		total++
		if (test in passed) {
			count++
		} else {
			bad(test " has not passed")
		}
	}
	if (!done) bad("the machine did not come to its end")
	if (lane == "systemd" && !late) bad("no container was left for the shutdown")
	if (total == 0) bad("no test was to run")
	print "vm: lane " lane ": " count + 0 " of " total + 0 " tests passed, " failed + 0 " failed, " skipped + 0 " skipped"
	exit wrong
}
