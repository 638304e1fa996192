# warmd: `make help` lists the targets. Two of them matter to a newcomer: demo and test.
SHELL := /bin/bash
export CGO_CFLAGS += -Wno-deprecated-declarations
# Python must write and use bytecode: without it every engine start recompiles 20,000 files.
unexport PYTHONDONTWRITEBYTECODE

# One for all of a run, whatever is edited meanwhile.
VERSION := $(or $(VERSION),$(shell packaging/version.sh))
BIN     ?= bin
LDFLAGS := -s -w -X main.version=$(VERSION)
# NVML is found at run time: with -z now (Ubuntu's default) the binary would not even start on a host without it.
LAZY    := -extldflags=-Wl,-z,lazy
# What takes long to make (a vLLM of 5 GB, a linter) is kept between checkouts.
CACHE   ?= $(or $(WARMD_CACHE),$(HOME)/.cache/warmd)
LINT    := $(CACHE)/tools/golangci-lint-v2.15.0
NFPM    := $(CACHE)/tools/nfpm-v2.45.2
PYTOOLS := $(CACHE)/tools/py-1
ETCD_VERSION := 3.7.3
ETCD    := $(CACHE)/tools/etcd-$(ETCD_VERSION)
VLLM    := 0.32.0
VLLM_OLDEST := 0.26.0
python   = $(WARMD_TEST_RUNTIMES)/vllm-$(1)/venv/bin/python
export WARMD_TEST_RUNTIMES := $(CACHE)/runtimes
# Who reads the end of a log reads what failed, not the last of many journals.
said     = { printf '\n%s\n' 'What failed; all of it is in dist/$(1).log:'; grep $(2) dist/$(1).log | cut -c1-500 | head -n 100; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help build packages packages-check demo bench test check test-go test-python test-real test-hosts host-tools fmt lint generate runtimes clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-15s %s\n",$$1,$$2}' $(MAKEFILE_LIST)

build: $(BIN)/warmd $(BIN)/warmctl ## build bin/warmd and bin/warmctl

$(BIN)/warmd: FORCE
	@mkdir -p $(BIN) && go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS) $(LAZY)' -o $@ ./cmd/warmd
$(BIN)/warmctl: FORCE
	@mkdir -p $(BIN) && CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)' -o $@ ./cmd/warmctl
FORCE:

packages: $(NFPM) ## build the .deb and .rpm of warmd and warmctl in dist/
	@rm -rf dist && VERSION='$(VERSION)' NFPM='$(NFPM)' packaging/build.sh dist

packages-check: packages ## look at what is in them, and build them again in another folder: the same bytes
	@command -v lintian rpm shellcheck | wc -l | grep -qx 3 || \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install lintian rpm shellcheck; }
	WARMD_TEST_PACKAGES='$(CURDIR)/dist' NFPM='$(NFPM)' VERSION='$(VERSION)' go test -count=1 -v ./packaging

demo: build ## place a model cold and warm on real vLLM, print tokens and the comparison
	@bin/warmd demo --root '$(WARMD_TEST_RUNTIMES)' --vllm $(VLLM)

bench: build runtimes ## the headline: plain vLLM against a warm worker, 5 counted rounds each
	@bin/warmd model make '$(CACHE)/demo-models/opt-125m' --preset opt-125m >/dev/null; d=$$(mktemp -d /tmp/warmd-bench-XXXX); \
	  bin/warmd dev --data $$d --runtimes '$(WARMD_TEST_RUNTIMES)' --models '$(CACHE)/demo-models' --slots 1 --log-level error & p=$$!; \
	  trap 'kill $$p; wait $$p; rm -rf '$$d EXIT; \
	  until bin/warmctl --server $$d/coordinator.sock workers 2>/dev/null | grep -q 'vllm-$(VLLM) .* warm '; do kill -0 $$p && sleep 1 || exit 1; done; \
	  bin/warmctl --server $$d/coordinator.sock bench cold-start '$(CACHE)/demo-models/opt-125m' --runtime vllm-$(VLLM) --runtimes '$(WARMD_TEST_RUNTIMES)' \
	    --arms vllm,warm --runs 5 --arg=--dtype=bfloat16 --arg=--max-model-len=512 --arg=--max-num-seqs=4 \
	    --arg=--kv-cache-memory-bytes=134217728

check: $(LINT) $(PYTOOLS)/ok ## the fast inner loop: format, vet, lint, unit tests
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'not gofmt-ed:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@go vet ./...
	@$(LINT) run -c packaging/golangci.yml ./...
	@$(PYTOOLS)/bin/ruff check -q --isolated --select E9,F,W,B --ignore B904,B905 --target-version py310 agent/runtime/vllm
	@go test -short ./...

test: build $(PYTOOLS)/ok runtimes ## every test: Go with -race, Python, golden files, packages, real etcd, real vLLM, booted hosts (as root)
	@$(MAKE) --no-print-directory test-go test-python packages-check test-real test-hosts

test-go: ## Go tests with -race, real etcd, engines of kind exec
	go test -race -count=1 -timeout 15m -p 1 -skip RealVLLM ./...

test-python: $(PYTOOLS)/ok runtimes ## Python tests, and the contract with the oldest and the newest vLLM
	WARMD_PYTHONS=$(call python,$(VLLM)):$(call python,$(VLLM_OLDEST)) WARMD_TEST_CACHE=$(CACHE)/contract \
	  $(PYTOOLS)/bin/python -m pytest -q -p no:cacheprovider agent/runtime/vllm

test-real: build runtimes ## the whole path with real vLLM: place, tokens, faults, re-adoption
	@mkdir -p dist; set -o pipefail; WARMD_TEST_REAL=1 WARMD_TEST_PYTHON=$(call python,$(VLLM)) \
	  go test -count=1 -timeout 20m -v -p 1 -run RealVLLM ./cmd/warmd ./agent/internal/worker 2>&1 | tee dist/test-real.log || \
	  $(call said,test-real,-E '_test.go:[0-9]+: |^--- FAIL|^panic: ')

test-hosts: host-tools packages runtimes $(ETCD) ## warmd on booted Debian hosts: systemd-nspawn, as root; prints the figures. HOSTS=REGEX for some of them, WARMD_TEST_SUITE=trixie for systemd 257
	@set -o pipefail; WARMD_TEST_HOSTS=1 WARMD_CACHE='$(CACHE)' WARMD_TEST_ETCD='$(ETCD)' WARMD_TEST_DEBS='$(CURDIR)/dist/*_$(VERSION)_*.deb' NFPM='$(NFPM)' \
	  go test -count=1 -timeout 40m -v $(if $(HOSTS),-run '$(HOSTS)') ./packaging/nspawn 2>&1 | tee dist/test-hosts.log || \
	  $(call said,test-hosts,-E -A6 'Error Trace:|: not within |^ *--- FAIL|^panic: ')

host-tools: ## install what boots the hosts, where it is missing (Debian, root)
	@command -v systemd-nspawn mmdebstrap iptables ip nsenter | wc -l | grep -qx 5 || \
	  { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install systemd-container mmdebstrap iptables iproute2 util-linux; }

runtimes: bin/warmd ## install the vLLM versions that the tests use (once, into the cache)
	@for v in $(VLLM) $(VLLM_OLDEST); do \
	  bin/warmd runtime check --fix --root "$(WARMD_TEST_RUNTIMES)" vllm-$$v >/dev/null 2>&1 || \
	  bin/warmd runtime add vllm-$$v --root '$(WARMD_TEST_RUNTIMES)' --vllm $$v --device cpu || exit 1; done

generate: build ## rewrite golden files, man pages, completions and the CLI reference
	go run ./cmd/warmctl docs >/dev/null
	go run ./cmd/warmd docs >/dev/null
	go test ./cmd/warmctl ./placement -rewrite

fmt: ## format the Go and Python sources
	gofmt -w $$(git ls-files '*.go')

clean: ## remove what was built here (not the cache)
	rm -rf bin dist

# The current etcd; Debian's comes with the hosts. Its module has replace directives, which `go install` refuses.
$(ETCD):
	@echo 'building etcd (once)'; mkdir -p $(dir $@) && d=$$(mktemp -d) && trap "rm -rf $$d" EXIT && cd $$d && \
	  { go mod init etcd && go get go.etcd.io/etcd/server/v3@v$(ETCD_VERSION); } 2>log || { cat log; exit 1; }; \
	  CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o $@.tmp go.etcd.io/etcd/server/v3 && mv $@.tmp $@

$(LINT):
	@echo 'installing golangci-lint (once)'; mkdir -p $(dir $@)tmp && GOBIN=$(dir $@)tmp go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 && mv $(dir $@)tmp/golangci-lint $@

$(NFPM):
	@echo 'installing nfpm (once)'; mkdir -p $(dir $@)tmp && GOBIN=$(dir $@)tmp go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.45.2 && mv $(dir $@)tmp/nfpm $@

$(PYTOOLS)/ok:
	@echo 'installing pytest and ruff (once)'; mkdir -p $(PYTOOLS) && python3 -m venv $(PYTOOLS) && $(PYTOOLS)/bin/pip install -q pytest==9.2.0 ruff==0.17.6 && touch $@
