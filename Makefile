# make demo   set up .venv if it is missing, then run the main job on the embedded digits
# make test   set up .venv if it is missing, then run all tests and doctests
# make check  formatting, lint, strict types, import rules (style is all but the last)
# make fuzz   thousands of damaged inputs for every reader (the tests try a few); N=2000 each
# make clean  remove .venv and caches
#
# PYTHON=python3.12 make test   uses another interpreter (3.11 to 3.13)
# make test ARGS="-k serial"    hands arguments on to pytest (or, with demo, to tailorbird demo)

SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
ARGS ?=
N ?= 2000

# Tests start some hundred processes: what they import is compiled once, whatever the shell says.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check style fuzz clean setup
.DELETE_ON_ERROR:

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/tailorbird demo $(ARGS)

# One thread per worker: the workers already fill the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: style
	$(BIN)/python -m pytest tests/test_import_rules.py

style: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

fuzz: $(STAMP)
	TAILORBIRD_FUZZ=$(N) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz -n $(WORKERS) $(ARGS)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# uv picks one build of torch for torch and torchvision; pip may mix two that don't fit.
# --system-certs: behind a company's proxy, the machine's own certificates are the right ones.
$(STAMP): pyproject.toml constraints.txt
	@set -eu; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON) python3.11 python3 python3.12 python3.13; do \
	    if "$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	        2>/dev/null; then found="$$python"; break; fi; \
	    if [ "$$python" = "$(PYTHON)" ]; then \
	      echo "PYTHON=$(PYTHON): expected Python 3.11 to 3.13" >&2; exit 2; fi; \
	  done; \
	  if [ -z "$${found:-}" ]; then \
	    echo "no Python 3.11 to 3.13 found; name one: make PYTHON=/path/to/python" >&2; exit 2; fi; \
	  echo "making $(VENV) with $$found"; \
	  "$$found" -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --system-certs --python $(BIN)/python \
	  -c constraints.txt -e ".[dev]"
	@touch $@
