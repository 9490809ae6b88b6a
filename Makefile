# Supervisor. `make help` lists the targets; `make setup`, `make run` and `make test` each work on a bare Debian 12.

PYTHON ?= /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
# More arguments for pytest: make test-host ARGS="-k memory"
ARGS ?=
# RERUNS=1 tells a test that fails by chance from one that always does; both are defects, so by default there is no second try.
RERUNS ?= 0
# What `make test` takes into the VM, where everything is some 20 times slower: all host tests that are not marked slow.
VM_TESTS ?= tests/host

LAUNCHER := supervisor/launcher
LAUNCHER_SOURCES := $(wildcard $(LAUNCHER)/*.c $(LAUNCHER)/*.h) $(LAUNCHER)/build.py
LAUNCHER_BIN := $(LAUNCHER)/bin
BPF_SOURCES := $(wildcard bpf/*.c bpf/*.h) bpf/build.py
BPF_BIN := supervisor/probes/bin

# What the daemon needs from Debian: a venv, the compilers of the launcher and the probes, libcap for python-prctl, libseccomp,
# libbpf.
APT_BASE := python3-venv python3-dev gcc libc6-dev libcap-dev libseccomp2 pkg-config clang libbpf-dev libbpf1
# What the demo and the tests run inside sandboxes: ordinary programs.
APT_TEST := git nodejs openssl busybox-static perl python3-numpy procps iproute2 util-linux e2fsprogs keyutils strace
# What boots a full kernel for the VM lane.
APT_VM := qemu-system-x86 linux-image-amd64 kmod udev zstd busybox-static
# The peers that `make bench` compares with.
APT_BENCH := bubblewrap firejail docker.io redis-server redis-tools

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup setup-test setup-vm setup-bench run test test-unit test-host test-vm test-asan soak violations bench bench-trace lint format \
	proto bpf launcher launcher-asan clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: apt-base launcher bpf $(VENV)/.installed ## make .venv, install what is missing, build the launcher

setup-test: setup
	@.ci/apt $(APT_TEST)

setup-vm: setup-test
	@.ci/apt $(APT_VM)

setup-bench: setup
	@.ci/apt $(APT_BENCH)

.PHONY: apt-base
apt-base:
	@.ci/apt $(APT_BASE)

# Again when pyproject.toml or setup.py changed: the dependencies may have. pip retries a download by itself; the loop is
# for what it does not, such as a connection lost in the middle of one.
$(VENV)/.installed: pyproject.toml setup.py | apt-base
	@echo "venv: installing host-supervisor and its tools into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv --system-site-packages $(VENV)
	@for attempt in 1 2 3; do \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517 --editable '.[dev,vm]' </dev/null && break; \
		test $$attempt != 3 || exit 1; \
		echo "venv: attempt $$attempt failed, once more" >&2; sleep 5; \
	done
	@touch $@

launcher: $(LAUNCHER_BIN)/.built ## compile the launcher
$(LAUNCHER_BIN)/.built: $(LAUNCHER_SOURCES) | apt-base
	@$(PYTHON) $(LAUNCHER)/build.py
	@mkdir -p $(@D) && touch $@

bpf: $(BPF_BIN)/.built ## compile the kernel programs
$(BPF_BIN)/.built: $(BPF_SOURCES) | apt-base
	@$(PYTHON) bpf/build.py
	@touch $@

launcher-asan: $(LAUNCHER_BIN)/.built-asan ## compile it with ASAN and UBSAN, as supervisor-launcher-asan
$(LAUNCHER_BIN)/.built-asan: $(LAUNCHER_SOURCES) | apt-base
	@$(PYTHON) $(LAUNCHER)/build.py --asan
	@mkdir -p $(@D) && touch $@

run: setup-test ## start the daemon and run real and hostile programs under it, as a newcomer would see it
	@$(BIN)/python -m supervisor.demo

test: setup lint test-unit test-host test-vm ## everything that must pass

test-unit: setup-test ## tests that need no root and no Linux
	$(BIN)/python -m pytest tests/unit --reruns $(RERUNS) $(ARGS)

test-host: setup-test launcher-asan ## tests on the running kernel; needs root, and a skip is a failure
	SUPERVISOR_REQUIRE=host $(BIN)/python -m pytest tests/host -m "not soak" --reruns $(RERUNS) $(ARGS)

test-vm: setup-vm ## the host tests in VM_TESTS in Debian's stock kernel with full cgroup v2, emulated
	$(BIN)/python tests/vm/run.py --reruns $(RERUNS) $(VM_TESTS) $(ARGS)

# LeakSanitizer stops all threads of its process with ptrace, which a launcher that is not dumpable cannot allow.
test-asan: setup-test launcher-asan ## the host tests with the sanitized launcher
	SUPERVISOR_REQUIRE=host SUPERVISOR_LAUNCHER=$(CURDIR)/$(LAUNCHER_BIN)/supervisor-launcher-asan \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1 \
		$(BIN)/python -m pytest tests/host -m "not soak and not slow" $(ARGS)

soak: setup-test ## mixed runs, eight at a time, for SUPERVISOR_SOAK_SECONDS (600)
	SUPERVISOR_REQUIRE=host $(BIN)/python -m pytest tests/host -s -m soak $(ARGS)

violations: setup-test ## every forbidden system call tried, and what became of it, as a table
	@$(BIN)/python -m tests.host.violations_table

bench: setup-bench ## latency beside peers, as ratios; never part of pass or fail
	@$(BIN)/python -m tests.bench $(ARGS)

bench-trace: setup-bench ## what tracing costs, beside the same sandbox without it and strace
	@$(BIN)/python -m tests.bench.trace

lint: setup ## ruff, mypy --strict, import contracts; clang-format where Debian 12's is installed
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@! clang-format --version 2>/dev/null | grep -q 'version 14' || clang-format --dry-run -Werror $(wildcard $(LAUNCHER)/*.c $(LAUNCHER)/*.h bpf/*.c bpf/*.h)

format: setup ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix --quiet || true
	$(BIN)/ruff format
	@! command -v clang-format >/dev/null || clang-format -i $(wildcard $(LAUNCHER)/*.c $(LAUNCHER)/*.h bpf/*.c bpf/*.h)

proto: setup ## generate supervisor/v1 from proto/
	$(BIN)/python proto/generate.py

clean: ## remove what was built, and the venv
	rm -rf $(VENV) $(LAUNCHER_BIN) $(BPF_BIN) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
