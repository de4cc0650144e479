# Everything runs from .venv, which these targets make themselves. PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard src/fastpipe/*.pyx src/fastpipe/*.pxd src/fastpipe/_streams_py.py src/agent/tunnel/*.pyx src/agent/tunnel/*.pxd)

OTHER_PYTHONS ?= $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python)

.PHONY: demo test test-compiled test-python test-pythons lint types clean

demo: $(VENV)/.installed
	$(BIN)/fastpipe-agent demo

# Both twins, each through the whole suite.
test: test-compiled test-python

test-compiled: $(VENV)/.tested
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-python: $(VENV)/.tested
	FASTPIPE_NO_EXTENSIONS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

# The transport's own tests, on every newer CPython that pyenv has here.
test-pythons:
	@for python in $(OTHER_PYTHONS); do \
	  venv=$(VENV)-$$($$python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  $(MAKE) --no-print-directory test-compiled VENV=$$venv PYTHON=$$python PYTEST_ARGS=tests/fastpipe || exit 1; \
	done

lint: $(VENV)/.linted
	$(BIN)/ruff check .
	PATH="$(abspath $(BIN)):$$PATH" cython-lint $(SOURCES) # it looks for pycodestyle there

types: $(VENV)/.linted
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist src/*.egg-info src/fastpipe/*.so src/agent/tunnel/*.so

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, {sys.executable} is {sys.version.split()[0]}: set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The extensions are rebuilt when their sources change.
$(VENV)/.installed: $(VENV)/bin/python pyproject.toml setup.py $(SOURCES)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.linted: $(VENV)/.tested
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]'
	touch $@
