# Berth's build. `make` alone lists the targets.

SHELL := /bin/sh
GO    ?= go

PREFIX  ?= /usr/local
DESTDIR ?=
BIN     := bin
OUT     := out

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null || echo unknown)

MODULE   := github.com/berthd/berth
LDFLAGS  := -s -w -X $(MODULE)/internal/version.Version=$(VERSION) -X $(MODULE)/internal/version.Revision=$(REVISION)
# grpcnotrace leaves out gRPC's pages for a browser, and with them html/template:
# berth starts a tenth quicker. The shim has no gRPC at all.
GO_BUILD := CGO_ENABLED=0 $(GO) build -tags grpcnotrace -trimpath -buildvcs=false -ldflags "$(LDFLAGS)"
SHIM     := containerd-shim-berth-v2

GOFUMPT       := $(GO) run mvdan.cc/gofumpt@v0.12.0
STATICCHECK   := $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOLANGCI_LINT := $(GO) run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

# Arguments for go test and for the bench: make test-unit TESTFLAGS=-v
TESTFLAGS  ?=
BENCHFLAGS ?=
UNIT        = $(shell $(GO) list ./... | grep -v -e /test/integration -e /test/conformance -e /test/speccheck -e /test/soak -e /test/load -e /test/criu -e /bench)

.DEFAULT_GOAL := help
.PHONY: help build docs demo clean-demo test test-unit test-integration test-conformance test-executor test-load load vm-test peers peers-buildkit peers-debian conformance-speccheck soak bench bench-executor lint check tidy fmt install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build berth, berthd and the shim into bin/
	@mkdir -p $(BIN)
	@$(GO_BUILD) -o $(BIN)/berth ./cmd/berth
	@$(GO_BUILD) -o $(BIN)/berthd ./cmd/berthd
	@$(GO_BUILD) -tags no_grpc -o $(BIN)/$(SHIM) ./cmd/$(SHIM)

demo: ## install what is missing, build, and run a container
	@scripts/deps demo
	@$(MAKE) --no-print-directory build
	@scripts/demo run

clean-demo: ## take away what the demo left: its image and the daemon
	@scripts/demo clean

docs: build ## write docs/cli.md, and the man pages into out/man
	@$(BIN)/berth docs >docs/cli.md
	@$(BIN)/berth docs --man $(OUT)/man

test: ## install what is missing and run all tests
	@scripts/deps test
	@$(MAKE) --no-print-directory test-unit
	@$(MAKE) --no-print-directory test-integration
	@$(MAKE) --no-print-directory test-conformance
	@$(MAKE) --no-print-directory test-load
	@$(MAKE) --no-print-directory test-executor
	@$(MAKE) --no-print-directory vm-test

test-unit: ## unit tests, with the race detector
	CGO_ENABLED=1 $(GO) test -race -timeout 15m $(TESTFLAGS) $(UNIT)

test-integration: build peers ## tests against stock containerd, then Berth (root, runc)
	$(GO) test -count=1 -timeout 30m $(TESTFLAGS) ./test/integration/... ./test/speccheck/... ./test/soak/...

test-conformance: build peers peers-buildkit ## what clients of a containerd daemon do, against stock and Berth
	$(GO) test -count=1 -timeout 30m $(TESTFLAGS) ./test/conformance/...

# Without the race detector: BuildKit's own executor, which is tested beside, has races.
# BuildKit leaves the directories of its file mounts among the temporary files.
test-executor: build peers peers-buildkit ## build steps on BuildKit's executor, then on Berth's (root, runc)
	@dir=$$(mktemp -d) && trap 'rm -rf --one-file-system "$$dir"' EXIT && cd executor && \
	echo "$(GO) test $(TESTFLAGS) ./... (in executor)" && TMPDIR=$$dir $(GO) test -count=1 -timeout 30m $(TESTFLAGS) ./...

vm-test: ## tests on an older kernel with cgroup v2, with and without systemd, in emulated machines
	@scripts/deps vm
	@scripts/vm

test-load: build peers ## many clients at once, for a short while
	$(GO) test -count=1 -timeout 10m $(TESTFLAGS) ./test/load

load: build peers ## the same for a minute, and with 10,000 records
	BERTH_LOAD_SECONDS=60 BERTH_LOAD_RECORDS=10000 $(GO) test -v -count=1 -timeout 90m $(TESTFLAGS) ./test/load

build-executor: ## build berth-buildkitd, which builds images with steps that run on Berth, into bin/
	@mkdir -p $(BIN)
	cd executor && $(GO_BUILD) -o ../$(BIN)/berth-buildkitd ./cmd/berth-buildkitd

peers: ## build stock containerd and runc for tests and benches into out/
	@scripts/peers $(OUT)/peers/bin

peers-debian: ## fetch Debian's containerd 1.6 into out/
	@scripts/peers $(OUT)/peers/bin debian

peers-buildkit: ## build buildkitd and buildctl into out/
	@scripts/peers $(OUT)/peers/bin buildkit

conformance-speccheck: ## write docs/conformance-speccheck.md anew: a spec's members under stock containerd
	@scripts/deps test
	@$(MAKE) --no-print-directory peers
	$(GO) test -count=1 ./test/speccheck -run 'TestStock' -update

soak: build ## 100,000 execs and 2,000 containers in one shim; fails when it grows; takes long
	@scripts/deps test
	$(GO) test -count=1 -v -timeout 12h ./test/soak -execs 100000 -cycles 2000 -idle 60s

bench: ## measure Berth beside stock containerd; figures in out/bench.json
	@scripts/deps bench
	@$(MAKE) --no-print-directory build peers
	@$(GO) run ./bench -json $(OUT)/bench.json $(BENCHFLAGS)

# One iteration of a benchmark is one round, in which all executors take a turn.
bench-executor: build peers peers-buildkit ## measure build steps beside BuildKit's own executors
	@scripts/deps bench
	@cd executor && export PATH="$(CURDIR)/$(OUT)/peers/bin:$$PATH" BERTH_TEST_RUNC="$(CURDIR)/$(OUT)/peers/bin/runc" && \
	$(GO) test -run '^$$' -bench Step -benchtime 100x $(BENCHFLAGS) . && \
	$(GO) test -run '^$$' -bench Build -benchtime 10x $(BENCHFLAGS) ./cmd/berth-buildkitd

check: ## what CI refuses: unformatted files, go vet
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofmt'ed (make fmt):"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	cd executor && $(GO) vet ./...

lint: check ## gofumpt, go vet, staticcheck, golangci-lint
	@unformatted=$$($(GOFUMPT) -l $$(git ls-files '*.go')); \
	if [ -n "$$unformatted" ]; then echo "not gofumpt'ed (make fmt):"; echo "$$unformatted"; exit 1; fi
	$(STATICCHECK) ./...
	$(GOLANGCI_LINT) run ./...

tidy: ## go mod tidy in both modules; the executor's follows the product's
	$(GO) mod tidy
	cd executor && $(GO) mod tidy

fmt: ## format all Go files
	@$(GOFUMPT) -w $$(git ls-files '*.go')

install: build ## install the binaries and man pages under PREFIX and the systemd unit
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/systemd/system
	install -m 0755 $(BIN)/berth $(BIN)/berthd $(BIN)/$(SHIM) $(DESTDIR)$(PREFIX)/bin/
	$(BIN)/berth docs --man $(DESTDIR)$(PREFIX)/share/man/man1
	sed 's|^ExecStart=[^ ]*/berthd|ExecStart=$(PREFIX)/bin/berthd|' packaging/berthd.service \
		>$(DESTDIR)$(PREFIX)/lib/systemd/system/berthd.service

clean: ## remove bin/ and out/
	rm -rf $(BIN) $(OUT)
