# Needs Rust (rustup.rs) and Python 3.11 or newer; the rest goes into a virtual environment, .venv.
# PYTHON=python3.13 VENV=.venv313 takes another interpreter.

# Above each target that is for people: "## ", its group, and a sentence. `make help` prints them.

PYTHON ?= python3
VENV ?= .venv
# Groups of pyproject.toml that the virtual environment gets.
TOOLS = build test lint
BIN := $(VENV)/bin
# The first and the last of each stretch of arroyo's releases in which its buffers are the same, and
# the last that has none.
RELEASES := 1.0.7 1.1.0 2.10.2 2.10.3 2.11.4 2.11.5 2.14.24 2.14.25 2.24.0 2.25.0 2.27.0 2.28.0 \
	2.30.0 2.31.0 2.31.1 2.31.2 2.38.4 2.38.5 2.40.1 2.40.3 2.48.0
# The same of sentry-streams' releases, and the last that has no such buffer.
STREAMS_RELEASES := 0.0.31 0.0.41 0.0.42 0.0.69
# Its wheels, whatever Python and system the suite runs on: only files of Python are used.
STREAMS_WHEEL := --only-binary=:all: --implementation=cp --python-version=3.11 --abi=cp311 \
	--platform=manylinux_2_28_x86_64 --platform=manylinux2014_x86_64
# The crate that needs no Python.
CORE := --package arroyo-metrics-buffer-core
SOURCES := Cargo.toml Cargo.lock pyproject.toml core/Cargo.toml $(wildcard core/src/*.rs src/*.rs src/*/*.rs)

# The file in dist/ that was made last.
newest = $$(ls -t dist/*.$(1) | head -n 1)
# What pytest is given: files, tests, options.
TESTS :=

# Runs a command that says much about the usual: its output is shown if it fails.
quietly = output=$$($(1) 2>&1) || { echo "$$output"; exit 1; }

.DEFAULT_GOAL := help
.PHONY: help install releases demo e2e e2e-streams test test-core test-wheel test-in-place test-source \
	test-oldest-arroyo test-free-threaded test-elsewhere test-musl test-all rehearsal matrix model sanitize \
	fuzz forks soak mutants mutants-python coverage lint lint-workflows deny docs format source wheel wheels bench instructions pythons \
	upstream-tests agents clean

## Every day: list the targets.
help:
	@awk -F ': ' 'NR <= 2 { print substr($$0, 3) } \
		/^## / { group = substr($$1, 4); sentence = substr($$0, length($$1) + 3) } \
		/^[a-z0-9-]+:/ && sentence { name = $$0; sub(/:.*/, "", name); \
			if (!(group in targets)) groups[++count] = group; \
			targets[group] = targets[group] sprintf("    make %-19s %s\n", name, sentence); sentence = "" } \
		END { for (i = 1; i <= count; i++) printf "\n%s\n%s", groups[i], targets[groups[i]] }' Makefile

# A virtual environment with the tools, made anew when their list changes.
$(VENV)/tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=...") if sys.version_info < (3, 11) else 0'
	@command -v cargo >/dev/null || { echo "Rust is needed: https://rustup.rs"; exit 1; }
	@echo "installing the tools into $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/pip install --quiet $(TOOLS:%=--group %)
	@touch $@

# The extension, built and installed in place; cargo knows what has to be compiled again.
$(VENV)/built: $(VENV)/tools $(SOURCES)
	@echo "building the extension"
	@$(call quietly,VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked)
	@touch $@

## Every day: build the extension, and install it into the virtual environment.
install: $(VENV)/built

## Every day: run a real consumer and producer, and account for every count.
demo: install
	@$(BIN)/python -m arroyo_metrics_buffer demo

## Longer: run consumers on a real Kafka broker, and kill it; needs Java, Maven, Go.
e2e: install
	@$(BIN)/python e2e/end_to_end.py
	@$(BIN)/python e2e/end_to_end.py --kill-broker

## Longer: run a pipeline of sentry-streams, and account for each of its metrics.
e2e-streams: install
	@$(BIN)/python e2e/streams_end_to_end.py $(lastword $(STREAMS_RELEASES))

# Releases to test with, beside the arroyo that is installed. One folder serves every interpreter.
## Longer: install the releases of arroyo and of sentry-streams that the suite drives.
releases: $(RELEASES:%=target/arroyo/%) $(STREAMS_RELEASES:%=target/streams/%)

target/arroyo/%: | $(VENV)/tools
	@echo "installing sentry-arroyo $*"
	@$(BIN)/pip install --quiet --no-deps --target $@ sentry-arroyo==$*

target/streams/%: | $(VENV)/tools
	@echo "installing sentry-streams $*"
	@$(BIN)/pip install --quiet --no-deps $(STREAMS_WHEEL) --target $@ sentry-streams==$*
	@find $@ -name '*.so*' -delete

# The core alone first: it needs no Python, and a failure there explains one that comes later.
## Every day: run all tests of the core, and the suite on the wheel.
test: test-core test-wheel

## Every day: run the tests and models of the core, without Python.
test-core:
	@cargo test --quiet --locked $(CORE)
	@$(MAKE) --no-print-directory model PREEMPTIONS=3

## Every day: run the suite on the wheel, as users have it.
test-wheel: wheel releases
	@$(BIN)/python scripts/test_installed.py $(call newest,whl) $(TESTS)

## Every day: run the suite on the installed extension; TESTS="-k fork" for a part.
test-in-place: install releases
	@$(BIN)/python -m pytest --quiet --numprocesses=auto --dist=worksteal $(TESTS)

# What pip builds from the source distribution: the machine's own linker links it, not zig.
## Release: test what pip builds from the source distribution.
test-source: source releases
	@$(BIN)/python scripts/test_installed.py $(call newest,tar.gz) \
		$(or $(TESTS),$(addprefix tests/,contract/test_shutdown.py contract/test_fork.py contract/test_signals.py \
			contract/test_drop_in.py commands/test_cli.py))

## Release: upload to an index on this machine; install from it by pip and by uv.
rehearsal: wheel
	@$(BIN)/python scripts/rehearsal.py $(call newest,whl) $(call newest,tar.gz)

# So many preemptions at most.
PREEMPTIONS ?= 4

## Longer: try thread interleavings of the core; PREEMPTIONS=5 for many more.
model:
	@RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=$(PREEMPTIONS) cargo test --quiet --locked $(CORE) \
		--target-dir target/model --test model -- --nocapture

## Longer: run the core under sanitizers (nightly Rust), Python under memcheck (valgrind).
sanitize: install
	@$(BIN)/python scripts/sanitize.py

# Where scripts/build_pythons puts what it builds.
export PYTHONS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/arroyo-metrics-buffer

## Longer: build free-threaded CPython 3.14 if there is none (Debian).
pythons:
	@scripts/find_python 3.14t >/dev/null || scripts/build_pythons $(PYTHONS)

## Longer: drive every release of arroyo, without this package and with it.
matrix: install
	@$(BIN)/python scripts/matrix.py

## Longer: run arroyo's own tests on both buffers; Kafka's need Java and Maven.
upstream-tests: install
	@$(BIN)/python e2e/upstream_tests.py

# AGENTS takes some of them: ddtrace opentelemetry newrelic elasticapm sentry_sdk gevent.
AGENTS :=

## Longer: run beside each APM agent in every order; AGENTS=ddtrace for one.
agents: wheel
	@$(BIN)/python e2e/agents.py $(call newest,whl) $(AGENTS)

# The Pythons that the package supports. scripts/test_on_debian has 3.15: the tests need confluent-kafka, which has no
# wheel for it yet.
VERSIONS := 3.11 3.12 3.13 3.14 3.14t

# Makes $(1) with the Python that the target ends in. Where there is none this is said; in CI it is an error.
define with_python
	@python=$$(scripts/find_python $*) || { echo "$@: NOT RUN, there is no python$*"; exit $(if $(CI),1,0); }; \
		$(MAKE) --no-print-directory $(1) PYTHON=$$python VENV=.venv-$* TOOLS=build
endef

$(VERSIONS:%=test-%): test-%:
	$(call with_python,test-wheel)

$(VERSIONS:%=wheel-%): wheel-%:
	$(call with_python,wheel)

## Longer: run the suite on free-threaded CPython 3.14, built if need be (Debian).
test-free-threaded: pythons
	@$(MAKE) --no-print-directory test-3.14t

## Longer: run the suite with the oldest arroyo that all of it is written for.
test-oldest-arroyo: releases
	@sed -n '/^test = /,/^]/s/.*"\(sentry-arroyo\)>=\(.*\)".*/\1==\2/p' pyproject.toml | grep . >target/oldest
	@PIP_CONSTRAINT=$(abspath target/oldest) $(MAKE) --no-print-directory test-wheel

# SYSTEMS takes some of them.
SYSTEMS :=

## Longer: run the suite in other Debians: CPython 3.13 to 3.15, emulated aarch64.
test-elsewhere: $(VENV)/tools releases
	@scripts/test_on_debian $(PYTHONS)/debian $(SYSTEMS)

# An interpreter that is linked to musl: cp314-musl or cp313-musl. It has a folder of its own, as scripts/find_python
# would take it for one that is linked to glibc.
MUSL = cp314-musl

## Longer: run the suite on the wheel for musl; MUSL=cp313-musl for CPython 3.13.
test-musl: $(VENV)/tools
	@scripts/test_on_musl $(PYTHONS)/musl $(MUSL) $(TESTS)

## Longer: run the suite on every Python there is, elsewhere and on musl.
test-all:
	@$(MAKE) --no-print-directory pythons || echo "free-threaded CPython 3.14: NOT BUILT"
	@$(MAKE) --no-print-directory --keep-going $(VERSIONS:%=test-%) test-elsewhere test-musl

# So many by the core's tests, which make ten thousand in any case, and so many by Python's.
FORKS ?= 10000

## Longer: fork ten thousand times at contended locks; FORKS=100000 for more.
forks: install
	@FORKS=$(FORKS) cargo test --quiet --locked $(CORE) --test forks
	@FORKS=$(FORKS) $(BIN)/python -m pytest --quiet tests/contract/test_fork.py

SECONDS ?= 600

## Longer: do everything at once for ten minutes; SECONDS=60 for one.
soak: install
	@$(BIN)/python scripts/soak.py --seconds $(SECONDS)

## Longer: break the Rust code in one small way after another; needs cargo-mutants.
mutants: install
	@command -v cargo-mutants >/dev/null || { echo "cargo-mutants is needed: cargo install --locked cargo-mutants"; exit 1; }
	@$(BIN)/python scripts/mutants.py

## Longer: do so with the Python that patches arroyo: a third of it, in half an hour.
mutants-python: install releases
	@$(BIN)/python scripts/python_mutants.py

# Not with these: forks would leave a file each, and each failing allocation or interrupted step would be one of
# coverage.py's. Its imports and objects are in the way of the tests that are deselected.
UNMEASURED := $(foreach name,fork hostile_objects memory memory_errors signals state_machine,--ignore=tests/contract/test_$(name).py) \
	$(addprefix --deselect=tests/, \
		commands/test_run.py::test_a_module_of_the_program_may_have_the_name_of_one_of_the_standard_librarys \
		commands/test_run.py::test_an_interpreter_within_another_starts_without_a_word \
		contract/test_shutdown.py::test_a_sub_interpreter_can_not_have_the_package_and_leaves_the_main_one_whole \
		patching/test_install_producer.py::test_a_remedy_from_before_the_import_is_superfluous_and_put_back)

# A forked child ends without writing what it has counted, unless the counters are in a file that it shares.
## Longer: show the lines and branches that tests reach; needs cargo-llvm-cov, nightly Rust.
coverage: install releases
	@command -v cargo-llvm-cov >/dev/null || { echo "cargo-llvm-cov is needed: cargo install --locked cargo-llvm-cov"; exit 1; }
	@cargo +nightly llvm-cov clean --workspace
	@$(call quietly,RUSTFLAGS=-Cllvm-args=-runtime-counter-relocation LLVM_PROFILE_FILE_NAME=core-%p-%c.profraw FORKS=1000 \
		cargo +nightly llvm-cov --no-report --locked --branch $(CORE))
	@cargo +nightly llvm-cov report --branch $(CORE)
	@rm -rf target/coverage
	@mkdir -p target/coverage
	@$(call quietly,$(BIN)/coverage run -m pytest --quiet --numprocesses=auto --dist=worksteal $(UNMEASURED) \
		tests/contract tests/patching tests/commands)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report

## Longer: run Hypothesis's tests with a hundred times as many examples.
fuzz: install
	@ARROYO_METRICS_BUFFER_PROFILE=fuzz $(BIN)/python -m pytest --quiet \
		tests/contract/test_state_machine.py tests/contract/test_hostile_objects.py

## Every day: check the style, types and comments of all code.
lint: install
	@cargo fmt --all --check
	@PYO3_PYTHON=$(abspath $(BIN)/python) cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/ruff check --quiet
	@if command -v shellcheck >/dev/null; then shellcheck $$(grep -ls '^#!.*sh$$' .ci/* scripts/*); \
		else echo "shellcheck: NOT RUN, it is not installed"; fi
	@$(BIN)/mypy --no-error-summary
	@$(call quietly,$(BIN)/basedpyright)
	@$(BIN)/python scripts/mutants.py --check
	@$(BIN)/python scripts/stubs.py --check
	@$(BIN)/python -m mypy.stubtest --concise arroyo_metrics_buffer._core

## Release: check the workflows with actionlint and zizmor; needs Go.
lint-workflows: $(VENV)/tools # zizmor asks nobody: what it could ask, dependabot does
	@go run github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
	@$(BIN)/zizmor --offline --quiet .github

## Release: check licences, sources and advisories of the crates; needs cargo-deny.
deny:
	@command -v cargo-deny >/dev/null || { echo "cargo-deny is needed: cargo install --locked cargo-deny"; exit 1; }
	@cargo deny --locked check

## Every day: build the site of the documentation in target/site, and check it.
docs: $(VENV)/tools
	@$(call quietly,NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict) # --quiet would hide what is strict
	@$(BIN)/python scripts/check_site.py target/site

## Every day: format the code.
format:
	@cargo fmt --all
	@$(BIN)/ruff format --quiet
	@$(BIN)/ruff check --quiet --fix

# TARGET is another of Rust's targets, INTERPRETER another Python's name, say python3.14; the machine need not have
# it.
TARGET =
INTERPRETER =
# Of another target maturin wants an interpreter's name, not its path.
NAME = python$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_config_var("LDVERSION"))')
# On Linux zig links it, so that it runs with older C libraries than this machine's.
ifeq ($(shell uname -s),Linux)
ZIG = $(BIN)/python -m ziglang
# For glibc the system's unwinder is linked: scripts/libgcc_s.c says why. musl's pthread_exit does not unwind.
LIBGCC_S = $(if $(findstring musl,$(TARGET)),,target/$(or $(firstword $(subst -, ,$(TARGET))),$(shell uname -m))/libgcc_s.so.1)
endif

target/%/libgcc_s.so.1: scripts/libgcc_s.c scripts/libgcc_s.map | $(VENV)/tools
	@mkdir -p $(@D)
	@$(ZIG) cc -target $*-linux-gnu -shared -nostdlib -Wl,-soname,$(@F) \
		-Wl,--version-script,scripts/libgcc_s.map -o $@ $<

## Release: make a source distribution in dist/, and check it.
source: $(VENV)/tools
	@$(call quietly,$(BIN)/maturin sdist --out dist)
	@$(BIN)/python scripts/check_wheel.py $(call newest,tar.gz)

## Release: make a wheel and a source distribution in dist/, and check them.
wheel: source $(LIBGCC_S)
	@$(call quietly,$(if $(ZIG),CARGO_ZIGBUILD_PYTHON_PATH=$(abspath $(BIN)/python)) $(BIN)/maturin build \
		--release --out dist $(if $(ZIG),--zig) $(TARGET:%=--target %) \
		--interpreter $(or $(INTERPRETER),$(if $(TARGET),$(NAME),$(BIN)/python)) \
		$(if $(LIBGCC_S),-- -C link-arg=$(abspath $(LIBGCC_S))))
	@$(BIN)/python scripts/check_wheel.py $(call newest,whl)

## Release: make a wheel for every supported Python that this machine has.
wheels: $(VERSIONS:%=wheel-%)

## Longer: measure, and write docs/benchmarks.md and its plots.
bench: install wheel releases
	@mkdir -p docs/benchmarks
	@$(call quietly,VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --manifest-path benches/empty_method/Cargo.toml)
	@$(BIN)/python benches/run.py docs/benchmarks
	@$(BIN)/python benches/report.py docs/benchmarks

## Every day: fail if a call takes more instructions than recorded; needs valgrind.
instructions: install
	@$(BIN)/python benches/instructions.py

## Every day: remove the virtual environments and all that was built.
clean:
	@rm -rf $(VENV) .venv-* target dist
