# demo and test set themselves up: a virtual environment in .venv, made once and again when pyproject.toml or the native
# engine's C sources change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
SOURCE ?= scenes:frames=150,seed=7

.PHONY: demo test lint types wheels clean
demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py --source "$(SOURCE)" --out demo

test: $(STAMP) lint types
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

define NEED_VENV
@$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.11" if sys.version_info < (3, 10) else 0)'
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { test "$$(id -u)" = 0 && echo "installing Debian's python3-venv" >&2 && \
		{ apt-get install -y -qq python3-venv || { apt-get update -qq && apt-get install -y -qq python3-venv; }; } >&2; } || \
		{ echo "Python's venv module is missing: sudo apt-get install python3-venv" >&2; exit 2; }
endef

$(STAMP): pyproject.toml setup.py $(wildcard runtime/native/*.[ch])
	$(NEED_VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $(STAMP)

# GCC compiles for x86-64, because Clang's kernels are slower there, and Zig links against the symbols of glibc 2.17; GCC's own
# library comes first, because Zig's knows no CPU. For AArch64 Zig does both.
TOOLS := $(CURDIR)/build/tools
ZIG := $(TOOLS)/bin/python -I -m ziglang cc -target
WHEEL := dist/gradseg-$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' src/gradseg/__init__.py)-py3-none-
BUILD_WHEEL = rm -rf build/lib* build/temp* && $(1) $(TOOLS)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
	--wheel-dir dist $(addprefix --config-settings=--build-option=--plat-name=,$(2)) .
CHECK_WHEEL = $(TOOLS)/bin/auditwheel show $(WHEEL)manylinux_2_17_$(1).whl | tr '\n' ' ' | grep 'following platform tag: "manylinux_2_17_$(1)"'
wheels: $(TOOLS)/.ready
	rm -rf dist
	$(call BUILD_WHEEL,CC=gcc LDSHARED="$(ZIG) x86_64-linux-gnu.2.17 -shared $$(gcc -print-libgcc-file-name)",manylinux_2_17_x86_64)
	! grep -qs avx2 /proc/cpuinfo || $(TOOLS)/bin/python -c 'import ctypes, glob; \
		assert ctypes.CDLL(*glob.glob("$(CURDIR)/build/lib*/gradseg/runtime/native/_native.so")).gs_isa(b"avx2"), "it knows no CPU"'
	$(call BUILD_WHEEL,CC="$(ZIG) aarch64-linux-gnu.2.17" LDSHARED="$(ZIG) aarch64-linux-gnu.2.17 -shared",manylinux_2_17_aarch64)
	$(call BUILD_WHEEL,CC=false)
	$(call CHECK_WHEEL,x86_64)
	$(call CHECK_WHEEL,aarch64)
	! find dist -name '*.whl' -size +2929k | grep .  # 3 MB
	@ls -l $(WHEEL)manylinux_2_17_x86_64.whl $(WHEEL)manylinux_2_17_aarch64.whl $(WHEEL)any.whl

$(TOOLS)/.ready: pyproject.toml
	$(NEED_VENV)
	$(PYTHON) -m venv $(TOOLS)
	CC=false $(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check ".[wheels]"
	@touch $@

clean:
	rm -rf $(VENV) runtime/native/*.so demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
