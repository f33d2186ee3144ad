# Everything works from a clean clone with Rust and Debian's packages. `make help` lists the targets.

CARGO ?= cargo
OUT ?= demo-out
ARGS ?=
DENY_VERSION := 0.20.2
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] && echo yes)

.PHONY: help setup build demo test test-root verify fmt clippy doc deny clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | column -t -s "$$(printf '\t')"

setup: ## install the Debian packages that the demo and the kernel tests call (ip, tc); needs root once
	@command -v ip >/dev/null && command -v tc >/dev/null || { \
	  if [ -n "$(AS_ROOT)" ]; then apt-get update -qq && apt-get install -y -qq iproute2; \
	  else echo "note: 'ip' and 'tc' are missing; as root: apt-get install iproute2"; fi; }

build: ## release binaries: sage-agent, sage-aggregator, sagectl, sage-bench
	$(CARGO) build --release --locked --bins

demo: setup build ## learn a real application, break it, watch it being repaired (ARGS="--topology chain --fault cpu:service_3")
	target/release/sage-bench demo --out $(OUT) $(ARGS)

test: setup ## all tests; as root those that need the kernel's knobs too
	$(CARGO) test --workspace --locked
ifeq ($(AS_ROOT),yes)
	$(MAKE) --no-print-directory test-root
else
	@echo "note: not root, so the kernel tests did not run: sudo make test-root"
endif

test-root: setup ## tests that change real cgroups, links and queues, in places of their own
	$(CARGO) test --workspace --locked -- --ignored --test-threads=1 root_tests

verify: fmt clippy doc deny test ## what CI checks

fmt:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --document-private-items

# The advisory database is a git repository: where it is out of reach the check says so and the rest still counts.
deny:
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install cargo-deny --locked --version $(DENY_VERSION)
	$(CARGO) deny --locked check -D warnings bans licenses sources
	@out=$$(mktemp); if $(CARGO) deny --locked check advisories >$$out 2>&1; then echo "advisories ok"; \
	elif grep -q 'failed to fetch advisory database' $$out; then echo "note: advisories not checked: the advisory database is out of reach"; \
	else cat $$out; exit 1; fi

clean: ## remove everything built and the demo's output
	$(CARGO) clean
	rm -rf $(OUT)
