# The targets people and CI call. They need Go; compose-test also needs Docker.
# Nothing is installed: tools run through `go run` at a pinned version.

SHELL       := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := build

# The release, from the nearest tag; without one the program keeps its own.
VERSION     ?= $(shell git describe --tags --dirty 2>/dev/null | sed 's/^v//')
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GO_BUILD    := go build -trimpath -ldflags "$(if $(VERSION),-X main.version=$(VERSION))"
# Whole clusters are tested alone: they need the processors to themselves.
UNIT         = $$(go list ./... | grep -v -e /cluster-tests$$ -e /cluster-tests/sim$$)

# Clusters in virtual time: so many, from this seed on (0: ever others).
SEEDS ?= 1000
SEED  ?= 0

.PHONY: help build dev test unit-test sim-test sim cluster-test jepsen race lint bench bench-store bench-switchover bench-feed bench-watch bench-leader bench-peers bench-growth peers image-context compose-test clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-14s %s\n", $$1, $$2}' Makefile

build: ## bin/holdfast
	$(GO_BUILD) -o bin/holdfast ./cmd/holdfast

dev: build ## a three-site cluster on this machine; Ctrl-C ends it
	bin/holdfast dev

test: unit-test sim-test cluster-test ## everything but the compose file; within 15 minutes on two cores

unit-test: ## the packages' own tests
	go test -timeout 8m $(UNIT)

sim-test: ## some hundred clusters in virtual time, each with other faults
	go test -timeout 5m ./cluster-tests/sim
	go test -timeout 5m -tags planted -run TestPlanted ./cluster-tests/sim

sim: ## SEEDS clusters in virtual time, from SEED on
	go test -run '^TestSim' -count 1 -timeout 24h -v ./cluster-tests/sim -seeds $(SEEDS) -seed $(SEED) -length 60s | grep -v -e '^=== ' -e '--- PASS: TestSim/'

cluster-test: ## real processes under kills, cuts and pauses
	go test -timeout 16m ./cluster-tests

HOURS ?= 0
jepsen: image-context ## every workload under every fault on real processes, in about 40 minutes; HOURS=n goes on with new seeds
	if docker build -q --target prebuilt -t holdfast:jepsen -f Dockerfile bin/image; then export HOLDFAST_IMAGE=holdfast:jepsen; fi; \
	go test -run '^TestJepsen$$' -count 1 -timeout 0 -v ./cluster-tests -runtime all -rounds 0 -hours $(HOURS) -report $(CURDIR)/bin/jepsen

race: ## all tests under the race detector, the clusters' processes too
	go test -race -timeout 15m $(UNIT)
	go test -race -timeout 10m ./cluster-tests/sim -seeds 20
	go test -race -short -timeout 20m ./cluster-tests

lint: ## gofmt, go vet, staticcheck
	@unformatted=$$(gofmt -l .); \
	if [ -n "$$unformatted" ]; then echo "gofmt wants to change:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go run $(STATICCHECK) ./...

bench: ## throughput and latency of a three-voter cluster, as a table
	go test -run '^TestMeasure$$' -count 1 -timeout 30m -v ./cluster-tests -measure

bench-store: ## what the state costs as it grows to 5,000,000 keys: time, memory and disk, as tables
	go test -run '^TestMeasureStore$$' -count 1 -timeout 3h -v ./cluster-tests -measure

bench-switchover: ## how long requests are held back while leadership is handed over, as a table
	go test -run '^TestMeasureSwitchover$$' -count 1 -timeout 10m -v ./cluster-tests -measure

bench-feed: ## how soon streams of changes tell, and what idle ones cost
	go test -run '^TestMeasureFeed$$' -count 1 -timeout 30m -v ./cluster-tests -measure

bench-watch: ## what waiting clients cost, and how soon they are woken, as tables
	go test -run '^TestMeasureWatch$$' -count 1 -timeout 30m -v ./cluster-tests -measure

bench-leader: peers ## how long no write is acknowledged when the leader goes, beside etcd, rqlite and Consul
	go test -run '^TestMeasureLeader$$' -count 1 -timeout 1h -v ./cluster-tests -measure

# Where results are put for readers; and further flags of what makes them.
DOCS         ?=
PEERS_FLAGS  ?=
GROWTH_FLAGS ?=
MEASURED      = -measure-out $(CURDIR)/bin $(if $(DOCS),-measure-docs $(abspath $(DOCS)))
bench-peers: peers ## throughput, latency and processor time beside etcd, rqlite and Consul; DOCS=docs writes them into PERFORMANCE.md
	go test -run '^TestMeasurePeers$$' -count 1 -timeout 1h -v ./cluster-tests -measure $(MEASURED) $(PEERS_FLAGS)

bench-growth: ## how cost grows with keys, values, connections, learners and watchers, in 15 minutes; DOCS=docs writes it into PERFORMANCE.md
	go test -run '^TestMeasureGrowth$$' -count 1 -timeout 1h -v ./cluster-tests -measure $(MEASURED) $(GROWTH_FLAGS)

peers: ## bin/peers: etcd and rqlite, built from the Go module proxy; Consul is taken from the PATH
	@for peer in etcd rqlited; do \
		$(MAKE) --no-print-directory bin/peers/$$peer || echo "$$peer is left out: it cannot be built here"; \
	done

# Each has a module of its own, so that it is built with the dependencies it was released with.
bin/peers/etcd: cluster-tests/peers/etcd.mod cluster-tests/peers/etcd.sum
	go build -modfile $< -o $@ go.etcd.io/etcd/server/v3

bin/peers/rqlited: cluster-tests/peers/rqlite.mod cluster-tests/peers/rqlite.sum # SQLite needs a C compiler
	CGO_ENABLED=1 go build -modfile $< -o $@ github.com/rqlite/rqlite/v8/cmd/rqlited

image-context: ## bin/image: what `docker build --target prebuilt` packs
	rm -rf bin/image && mkdir -p bin/image/data
	CGO_ENABLED=0 GOOS=linux $(GO_BUILD) -o bin/image/holdfast ./cmd/holdfast

compose-test: image-context ## docker-compose.yml up, a site cut off and joined again, down
	docker build -q --target prebuilt -t holdfast:compose-test -f Dockerfile bin/image
	HOLDFAST_IMAGE=holdfast:compose-test go test -run '^TestCompose$$' -count 1 -timeout 10m -v ./cluster-tests -compose

clean: ## what the other targets made
	rm -rf bin holdfast-dev
