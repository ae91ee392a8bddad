# Both targets set themselves up: a virtual environment in .venv, made once and again when pyproject.toml or the native
# engine's C sources change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SOURCE ?= scenes:frames=150,seed=7

.PHONY: demo test lint types clean
demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py --source "$(SOURCE)" --out demo

test: $(STAMP) lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

$(STAMP): pyproject.toml setup.py $(wildcard runtime/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { test "$$(id -u)" = 0 && echo "installing Debian's python3-venv" >&2 && \
		{ apt-get install -y -qq python3-venv || { apt-get update -qq && apt-get install -y -qq python3-venv; }; } >&2; } || \
		{ echo "Python's venv module is missing: sudo apt-get install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $(STAMP)

clean:
	rm -rf $(VENV) runtime/_native*.so demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
