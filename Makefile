# Everything runs from .venv, which these targets make themselves. PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The sources of the compiled twins, as pyproject.toml lists them. A .pxd gives types to the .pyx or .py beside it. A .pxi
# and a .h are parts of a .pyx.
TYPES := $(wildcard src/fastpipe/*.pxd src/agent/*/*.pxd)
CYTHON := $(wildcard src/fastpipe/*.pyx src/fastpipe/*.pxi src/agent/*/*.pyx src/agent/*/*.pxi) $(TYPES)
SOURCES := $(CYTHON) $(wildcard src/fastpipe/*.h $(patsubst %.pxd,%.py,$(TYPES)))

OTHER_PYTHONS ?= $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python)
# The CPythons that `make wheels` makes wheels for and tries them on, and what of the suite it runs on each.
WHEEL_PYTHONS ?= $(or $(wildcard $(HOME)/.pyenv/versions/3.1[1-9]*/bin/python),$(PYTHON))
WHEEL_SUITE ?= tests

.PHONY: alone-compiled alone-python share-compiled share-python bench bench-curves bench-docs bench-quick browser chaos commits demo help hooks test test-compiled test-python test-pythons fuzz soak sanitize lint types wheels wheels-quick sdist pure identifiers clean

demo: $(VENV)/.installed ## run hub, agent and target in one process, and print a table (the default target)
	$(BIN)/fastpipe-agent demo

# Each target's line is the comment behind its name. Needs no environment.
help: ## list all targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-14s %s\n", $$1, $$2 }' Makefile

# Both twins, each through the whole suite, side by side. Tests that measure milliseconds run first, one at a time.
test: alone-compiled alone-python ## run the whole suite on both twins (a part: PYTEST_ARGS=tests/tunnel)
	@echo "Testing the Python twin and the compiled one side by side: some minutes each, the first one's output at its end."
	@.ci/beside "$(MAKE) --no-print-directory share-python" "$(MAKE) --no-print-directory share-compiled"

# Half of a test's time is waiting, so more processes than cores. WORKERS=0 runs all tests in one process.
WORKERS ?= 3
PARALLEL = $(if $(filter-out 0,$(WORKERS)),-n $(WORKERS) --dist worksteal)
# The parts of the suite for code that has one twin: command line, configuration, policy, telemetry, settings, reloads,
# signals. A whole run tests them once, on the compiled twin. Some of them start processes, but their subject is no
# compiled module. The drain itself is tested on both twins by tests/connections and tests/whole/test_drain.py.
# tests/whole/test_cli.py and the rest of tests/rollout test processes on the Python twin too.
ONE_TWIN := tests/bench tests/cli tests/config tests/spoke tests/x509 tests/connections/test_ids.py \
  tests/fastpipe/test_pipe_types.py \
  $(patsubst %,tests/hub/test_%.py,agent_door clusters connect_clusters first_bytes index origins proxy_protocol) \
  $(patsubst %,tests/policy/test_%.py,agent_identity api_server chains check connect_rules connecting identity \
  kubernetes reviews rewriting router services trust) \
  $(patsubst %,tests/rollout/test_%.py,drain_process few_descriptors hub_health hub_settings metrics_page \
  own_parts reload) \
  $(patsubst %,tests/runtime/test_%.py,acceptor descriptors serving) \
  $(patsubst %,tests/telemetry/test_%.py,health logs repeats writing) tests/tunnel/test_backoff.py \
  $(patsubst %,tests/whole/test_%.py,hub_proxy links logging signals) \
  $(patsubst %,tests/test_%.py,architecture commit_message contributing deploy errors language layout messages packaging \
  time_limits web_apps_page)
TEST_COMPILED = $(BIN)/python -m pytest
TEST_PYTHON = FASTPIPE_NO_EXTENSIONS=1 $(BIN)/python -m pytest $(if $(PYTEST_ARGS),,$(ONE_TWIN:%=--ignore=%))
# pytest exits with 5 if it finds no test. Most values of PYTEST_ARGS name none that run alone.
NONE_IS_FINE = || [ $$? -eq 5 ]

test-compiled: alone-compiled share-compiled ## run the suite on the compiled twin

test-python: alone-python share-python ## run the suite on the Python twin

alone-compiled: $(VENV)/.tested ## run the tests that measure milliseconds, on the compiled twin
	$(TEST_COMPILED) -m alone $(PYTEST_ARGS) $(NONE_IS_FINE)

alone-python: $(VENV)/.tested ## run the tests that measure milliseconds, on the Python twin
	$(TEST_PYTHON) -m alone $(PYTEST_ARGS) $(NONE_IS_FINE)

share-compiled: $(VENV)/.tested ## run all other tests in several processes, on the compiled twin
	$(TEST_COMPILED) $(PARALLEL) -m "not alone" $(PYTEST_ARGS)

share-python: $(VENV)/.tested ## run all other tests in several processes, on the Python twin
	$(TEST_PYTHON) $(PARALLEL) -m "not alone" $(PYTEST_ARGS)

# The transport's own tests, on every newer CPython that pyenv has. Two at a time, since half of an install is waiting.
# An output comes whole, when its tests have ended. More processes for a suite would take longer to start than they
# save. -O0 takes gcc a sixth of the time of -O3. The two builds share Cython's output, so one build comes before them.
test-pythons: $(VENV)/.tested ## run the transport's tests on every newer CPython that pyenv has
	@mkdir -p build
	@printf '%s\n' $(OTHER_PYTHONS) | FASTPIPE_QUICK_BUILD=1 xargs -r -P 2 -I {} sh -c ' \
	  version=$$({} -c "import sys; print(\"%d.%d\" % sys.version_info[:2])"); \
	  made=$(VENV)-transport-$$version; \
	  { $(MAKE) --no-print-directory VENV=$$made PYTHON={} TEST_EXTRA=test-transport $$made/.tested \
	    && $$made/bin/python -m pytest tests/fastpipe; } >build/test-$$version.log 2>&1; \
	  code=$$?; cat build/test-$$version.log; exit $$code'

# The transport's and the tunnel's tests on extensions that the address and undefined-behaviour sanitizers watch. They
# are made from the sdist, because this tree's objects have no sanitizers. A finding ends the run.
SANITIZE_SUITE ?= tests/fastpipe tests/tunnel/test_messages.py tests/http2/test_framing.py \
  tests/http2/test_header_blocks.py tests/http2/test_header_blocks_twins.py tests/proxy/test_heads.py
SANITIZERS = $(shell gcc -print-file-name=libasan.so):$(shell gcc -print-file-name=libubsan.so)
sanitize: $(VENV)-sanitize/.packaging ## run transport and decoders under the address and undefined-behaviour sanitizers
	rm -rf build/sanitize
	$(VENV)-sanitize/bin/python -m build --sdist --outdir build/sanitize .
	$(VENV)-sanitize/bin/python -m pip uninstall --quiet --yes fastpipe-agent
	FASTPIPE_SANITIZE=1 $(VENV)-sanitize/bin/python -m pip install --quiet --no-cache-dir \
	  "$$(echo build/sanitize/*.tar.gz)[test]"
	LD_PRELOAD="$(SANITIZERS)" ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	  $(VENV)-sanitize/bin/python -m pytest -p no:cacheprovider --timeout=900 $(SANITIZE_SUITE) $(PYTEST_ARGS)

# From the sdist, a wheel for each CPython here and one for every machine, into dist/. Each is installed and tried.
wheels: $(VENV)-packaging/.packaging ## build sdist and wheels into dist/, and try each of them with the suite
	$(VENV)-packaging/bin/python .ci/wheels.py --suite "$(WHEEL_SUITE)" $(WHEEL_PYTHONS)

# The same with a part of the suite that takes seconds.
wheels-quick: ## run `wheels` with the part of the suite that takes seconds
	$(MAKE) --no-print-directory wheels WHEEL_SUITE="tests/fastpipe/test_pipe_states.py tests/test_imports.py"

# Parts of it, for the workflows: the sdist, the sdist with the wheel for every machine, the list of wheels.
sdist: $(VENV)-packaging/.packaging ## build the sdist alone
	$(VENV)-packaging/bin/python .ci/wheels.py --step sdist

pure: $(VENV)-packaging/.packaging ## build the sdist and the wheel for every machine
	$(VENV)-packaging/bin/python .ci/wheels.py --step pure --suite "$(WHEEL_SUITE)" $(firstword $(WHEEL_PYTHONS))

identifiers: $(VENV)-packaging/.packaging ## list the wheels that cibuildwheel builds
	$(VENV)-packaging/bin/python .ci/wheels.py --step identifiers

# Every rival in the same run. The reports are in bench/results. Under 15 min, and under 90 s. BENCH_ARGS="--only hop"
bench: $(VENV)/.tested ## measure everything with its rivals (a part: BENCH_ARGS="--only hop")
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-quick: $(VENV)/.tested ## measure a named subset in under 90 s
	$(BIN)/python -m bench --quick $(BENCH_ARGS)

# Each default beside its alternatives, into bench/results/curves.*, in under 10 min.
bench-curves: $(VENV)/.tested ## measure each default beside its alternatives
	$(BIN)/python -m bench $(BENCH_ARGS) curves

# Their figures into docs/performance.md and README.md.
bench-docs: $(VENV)/.tested ## put the last figures into README.md and docs/performance.md
	$(BIN)/python -m bench $(BENCH_ARGS) docs

# The nightly run: a million packets and a million heads, on both twins. CI takes 50,000 of each.
fuzz: $(VENV)/.tested ## give the decoders a million random inputs each, on both twins
	FASTPIPE_INPUTS=1000000 $(BIN)/python -m pytest tests/tunnel/test_messages_twins.py tests/http2/test_framing_twins.py \
	  tests/http2/test_header_blocks_twins.py $(PYTEST_ARGS)
	FASTPIPE_INPUTS=1000000 $(BIN)/python -m pytest tests/proxy/test_head_twins.py $(PYTEST_ARGS)
	FASTPIPE_INPUTS=1000000 FASTPIPE_NO_EXTENSIONS=1 $(BIN)/python -m pytest tests/proxy/test_head_twins.py $(PYTEST_ARGS)

# Nightly too: short tests of the suite at full length, on both twins. 20 readers of 1 GiB pause for a minute. A hub is
# killed 50 times under load. The run takes about a quarter of an hour, and prints its measurements at the end.
SOAK_SUITE := tests/tunnel/test_stalled.py tests/whole/test_kills.py tests/whole/test_grpc.py tests/whole/test_grpc_kills.py
soak: $(VENV)/.tested ## run the long tests: stalled readers, kills of hub and agent, gRPC in full size
	FASTPIPE_SOAK=1 $(BIN)/python -m pytest -s $(SOAK_SUITE) $(PYTEST_ARGS)
	FASTPIPE_SOAK=1 FASTPIPE_NO_EXTENSIONS=1 $(BIN)/python -m pytest -s $(SOAK_SUITE) $(PYTEST_ARGS)

# Faults on links between real processes in network namespaces, one table, exit 1 if a bound is missed. Needs root and
# iproute2, under 15 min. CHAOS_ARGS="--only blackhole" a part, CHAOS_ARGS=--list names them.
chaos: $(VENV)/.tested ## break links between processes in network namespaces, as root (CHAOS_ARGS=--list)
	$(BIN)/python -m bench.chaos $(CHAOS_ARGS)

# Real web applications behind hub and agent, opened by Debian's Chromium. The applications are not in the environment of
# `make test`. A part: PYTEST_ARGS="-k django".
browser: $(VENV)/.tested $(VENV)-browser/.browser ## open real web applications through a hub with Chromium
	$(VENV)-browser/bin/python -m pytest tests/browser $(PYTEST_ARGS)

# The check of the language reads all of these.
PLAIN := $(wildcard *.md docs/*.md) .ci .github deploy Makefile pyproject.toml MANIFEST.in setup.py bench src tests

lint: $(VENV)/.linted ## run ruff, cython-lint and the check of the language
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint $(CYTHON) # cython-lint looks for pycodestyle there
	$(BIN)/python .ci/language.py $(PLAIN)

types: $(VENV)/.linted ## run mypy in strict mode
	$(BIN)/mypy
	$(BIN)/mypy setup.py .ci/commit_message.py .ci/language.py .ci/wheels.py

# The commits of a pull request: what CI checks. Needs Git and a Python alone.
RANGE ?= origin/main..HEAD
commits: ## check the commit messages of RANGE (origin/main..HEAD)
	$(PYTHON) .ci/commit_message.py --range "$(RANGE)"

# Ruff, cython-lint and the check of the message, before each commit: .pre-commit-config.yaml runs them from $(VENV).
hooks: $(VENV)/.linted ## install the Git hooks that check each commit
	$(BIN)/python -m pip install --quiet --group hooks
	$(BIN)/pre-commit install --hook-type pre-commit --hook-type commit-msg

clean: ## remove environments and everything that was built
	rm -rf $(VENV) $(VENV)-* build dist src/*.egg-info src/fastpipe/*.so src/agent/*/*.so

# Printed before long steps. A slow machine is silent for minutes in each of them.
COMPILING := Installing what is missing, and compiling the extensions on all cores: about a minute, several on a slow \
  machine. FASTPIPE_NO_EXTENSIONS=1 leaves them out; everything works without them, and is slower.

.PRECIOUS: %/bin/python %/.applications
%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: set PYTHON=")'
	@echo "Making $*, an environment for Python."
	$(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade pip

# The extensions are rebuilt when their sources change: once for the whole chain, since pip builds them each time.
TEST_EXTRA ?= test
$(VENV)/.tested: EXTRAS := [$(TEST_EXTRA)]
$(VENV)/.tested: DONE := $(VENV)/.installed
$(VENV)/.linted: EXTRAS := [test,lint]
$(VENV)/.linted: DONE := $(VENV)/.installed $(VENV)/.tested
$(VENV)/.installed $(VENV)/.tested $(VENV)/.linted: $(VENV)/bin/python pyproject.toml setup.py $(SOURCES)
	@echo "$(COMPILING)"
	$(BIN)/python -m pip install --editable '.$(EXTRAS)'
	touch $(DONE) $@

# vite comes from npm's registry. None of this needs the package, so .ci/run installs it while the extensions compile.
VITE := vite@>=6
%/.applications: %/bin/python pyproject.toml
	$*/bin/python -m pip install --quiet --group browser
	PATH="$(abspath $*)/bin:$$PATH" npm install --silent --no-audit --no-fund --prefix $*/npm '$(VITE)'
	touch $@

# The extensions in `src` serve this environment too, so nothing is compiled for it. Two installs of this tree at a time
# would write the same metadata.
%/.browser: %/.applications | $(VENV)/.tested
	FASTPIPE_NO_EXTENSIONS=1 $*/bin/python -m pip install --quiet --editable '.[asgi]'
	touch $@

# Packaging's tools need no install of this package, and are separate from the tests' tools.
%/.packaging: %/bin/python pyproject.toml
	$*/bin/python -m pip install --quiet --group packaging
	touch $@
