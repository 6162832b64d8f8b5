# carpel: build, run, test, install. Each target does its own set-up; `run` and `test` need root.
#
#   make run         a tour: a release daemon on a private root, a real pod (ONCE=1 stops after it)
#   make test        unit and integration tests
#   make build       release binaries in target/carpel
#   make install     into PREFIX (default /usr/local) below DESTDIR
#   make lint        formatting and clippy, warnings are errors
#   make bench       benchmarks; BENCH_ARGS go to the benchmark client

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build
.PHONY: build run test lint bench install clean deps-build deps-test need-root

CARGO ?= cargo
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= /usr/lib/systemd/system
DESTDIR ?=
ONCE ?=
BENCH_ARGS ?=

TARGET := $(abspath $(or $(CARGO_TARGET_DIR),target))
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
# The release binaries, and those that the tests drive.
BIN := $(TARGET)/carpel
DEV_BIN := $(TARGET)/carpel-dev

BUILD_PACKAGES := gcc libc6-dev
RUN_PACKAGES := $(BUILD_PACKAGES) busybox-static iproute2 iptables nftables
TEST_PACKAGES := $(RUN_PACKAGES) containernetworking-plugins dnsmasq-base docker-registry openssl zstd
BENCH_PACKAGES := $(TEST_PACKAGES) containerd runc

# $(call install-packages,NAMES): what is missing of Debian's packages, without a word if it works.
define install-packages
	if ! command -v dpkg-query >/dev/null; then \
		echo "not a Debian system: these packages' programs must be there already: $(1)" >&2; exit 0; \
	fi; \
	missing=(); \
	for package in $(1); do \
		[[ "$$(dpkg-query -W -f='$${Status}' "$$package" 2>/dev/null)" == *" installed" ]] || missing+=("$$package"); \
	done; \
	(( $${#missing[@]} )) || exit 0; \
	if (( EUID )); then echo "missing packages, install them as root: $${missing[*]}" >&2; exit 1; fi; \
	echo "installing $${missing[*]}"; \
	log=$$(mktemp); export DEBIAN_FRONTEND=noninteractive; \
	if ! { apt-get update -q && apt-get install -yq --no-install-recommends "$${missing[@]}"; } </dev/null >"$$log" 2>&1; then \
		cat "$$log" >&2; rm "$$log"; exit 1; \
	fi; rm "$$log"
endef

# $(call spawned,FOLDER): the programs that the daemon spawns, into FOLDER. They are small, so that tests
# and releases use the same.
define spawned
	@mkdir -p $(1)
	@$(CARGO) build -q --profile supervisor -p carpel-supervisor --features binary --bin carpel-supervisor
	@RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" $(CARGO) build -q --profile plugin -p carpel-cni --bin carpel-cni --target $(HOST)
	@install -m 0755 $(TARGET)/supervisor/carpel-supervisor $(TARGET)/$(HOST)/plugin/carpel-cni $(1)/
endef

build: deps-build
	@$(CARGO) build --release -p carpel --bins
	$(call spawned,$(BIN))
	@install -m 0755 $(TARGET)/release/{carpel,carpel-daemon} $(BIN)/
	@echo "built $(BIN)/{carpel,carpel-daemon,carpel-supervisor,carpel-cni}"

run: need-root
	@$(call install-packages,$(RUN_PACKAGES))
	@echo "building a release; the first time takes a few minutes"
	@$(CARGO) build -q --release -p carpel -p carpel-integration --bin carpel --bin carpel-daemon --bin tour
	$(call spawned,$(BIN))
	@install -m 0755 $(TARGET)/release/{carpel,carpel-daemon} $(BIN)/
	@CARPEL_BIN_DIR=$(BIN) ONCE=$(ONCE) $(TARGET)/release/tour

# One selection of packages and targets for all of it, so that no dependency is compiled twice. The
# integration tests hold many of their own processes: more of them at a time would only slow each other.
TESTED := --workspace --lib --bins --tests
test: need-root deps-test
	@$(CARGO) build -q $(TESTED)
	$(call spawned,$(DEV_BIN))
	@install -m 0755 $(TARGET)/debug/{carpel,carpel-daemon} $(DEV_BIN)/
	@export CARPEL_BIN_DIR=$(DEV_BIN); \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --no-fail-fast $(TESTED); \
	else \
		$(CARGO) test --no-fail-fast $(TESTED); \
	fi

lint:
	@$(CARGO) fmt --all --check
	@$(CARGO) clippy -q --workspace --all-targets -- -D warnings
	@$(CARGO) clippy -q --profile supervisor -p carpel-supervisor --features binary --bin carpel-supervisor -- -D warnings

bench: need-root build
	@$(call install-packages,$(BENCH_PACKAGES))
	@$(CARGO) build -q --release -p carpel-integration --bin bench
	@CARPEL_BIN_DIR=$(BIN) $(TARGET)/release/bench $(BENCH_ARGS)

install: build
	install -D -m 0755 $(BIN)/carpel $(DESTDIR)$(PREFIX)/bin/carpel
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec/carpel $(BIN)/carpel-{daemon,supervisor,cni}
	install -d $(DESTDIR)$(PREFIX)/share/carpel/cni-conf
	install -m 0644 cni-conf/*.conflist $(DESTDIR)$(PREFIX)/share/carpel/cni-conf/
	install -D -m 0644 src/config/default.toml $(DESTDIR)$(PREFIX)/share/carpel/config.toml
	install -d -m 0755 $(DESTDIR)$(UNITDIR) $(DESTDIR)$(SYSCONFDIR)/carpel/conf.d
	sed 's|@PREFIX@|$(PREFIX)|g' dist/carpel.service > $(DESTDIR)$(UNITDIR)/carpel.service

clean:
	@$(CARGO) clean -q

deps-build:
	@$(call install-packages,$(BUILD_PACKAGES))

deps-test:
	@$(call install-packages,$(TEST_PACKAGES))

need-root:
	@if (( EUID )); then \
		echo "carpel makes namespaces, mounts and cgroups: run this target as root" >&2; exit 1; \
	fi
