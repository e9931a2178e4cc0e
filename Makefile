# Everything a person or CI does with this checkout. Needs Python 3.11 or newer with venv, and make;
# `make compiled` also a C compiler. Nothing is downloaded but packages.

PYTHON ?= python3
VENV := .venv
COMPILED := .venv-compiled
BIN := $(VENV)/bin

# of `make test` and `make compiled`: how many processes run the tests; 0: pytest's own
WORKERS := auto
# A file's tests share a proxy. The quick ones come last in their order, and fill the end.
IN_WORKERS = -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# of `make django-suite`: labels of Django's runtests.py, or --all
LABELS :=
PARALLEL := 2
ENGINE := postgresql
DRIVER := psycopg

# of `make bench-idle` and `make bench-sqlite`: a PNG to draw
PLOT :=

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The tests start the command hundreds of times: it is compiled once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test check fix bench bench-django-sqlite bench-idle bench-latency bench-memory \
	bench-sqlite compiled django-suite clean

help:
	@echo "make demo      see the proxy at work, in front of a PostgreSQL of its own"
	@echo "make test      every test, on a PostgreSQL of its own (or TXPROXY_TEST_PG_BIN=/path/to/bin)"
	@echo "make check     formatting, lint, types and import contracts"
	@echo "make fix       what of that can be put right by machine"
	@echo "make bench     the throughput benchmark (bench-idle, -latency, -memory, -sqlite,"
	@echo "               -django-sqlite: the others)"
	@echo "make compiled  build the compiled wheel and test it, in $(COMPILED)"
	@echo "make django-suite  Django's own tests through the proxy, next to a direct connection"
	@echo "make clean     remove what the above have made"

demo: $(VENV)/.demo
	$(BIN)/txproxy demo

test: $(VENV)/.test
	$(BIN)/python -m pytest $(IN_WORKERS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy txproxy tests $(wildcard benchmarks)
	$(BIN)/lint-imports

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

django-suite: $(VENV)/.test
	$(BIN)/python -m tests.django_suite --engine $(ENGINE) --driver $(DRIVER) --parallel $(PARALLEL) $(LABELS)

bench: $(VENV)/.demo
	$(BIN)/python benchmarks/throughput.py

bench-idle: $(VENV)/$(if $(PLOT),.bench,.demo)
	$(BIN)/python benchmarks/idle_in_transaction.py $(if $(PLOT),--plot $(PLOT))

bench-latency: $(VENV)/.demo
	$(BIN)/python benchmarks/latency.py

bench-memory: $(VENV)/.demo
	$(BIN)/python benchmarks/memory.py

bench-sqlite: $(VENV)/$(if $(PLOT),.bench,.demo)
	$(BIN)/python benchmarks/sqlite_writers.py $(if $(PLOT),--plot $(PLOT))

bench-django-sqlite: $(VENV)/.bench
	$(BIN)/python benchmarks/django_sqlite.py

clean:
	rm -rf $(VENV) $(COMPILED) build txproxy.egg-info .mypy_cache .ruff_cache .pytest_cache
	rm -rf .import_linter_cache .hypothesis .django-suite

# A stamp says that an extra is installed as pyproject.toml now states it.

$(VENV)/.demo $(VENV)/.bench $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

define OLD_PYTHON
import sys
sys.exit(sys.version_info < (3, 11) and "txproxy needs Python 3.11 or newer; $(PYTHON) is "
         + sys.version.split()[0] + ". Name another one: make PYTHON=python3.13 ...")
endef
export OLD_PYTHON

$(BIN)/python $(COMPILED)/bin/python: %/bin/python:
	@$(PYTHON) -c "$$OLD_PYTHON"
	$(PYTHON) -m venv $*

# An editable compiled install would leave .so files in the tree, and an edited .py would then be
# ignored without a word: so the wheel is built from a copy, and tested where no source tree is.

define ASSERT_COMPILED
import importlib, pkgutil, sys
import txproxy.core, txproxy.wire
found = [
    importlib.import_module(module.name)
    for package in (txproxy.wire, txproxy.core)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not module.ispkg
]
wrong = [module.__file__ for module in found if not module.__file__.endswith(".so")]
sys.exit(f"not compiled: {wrong or 'no modules at all'}" if wrong or not found else 0)
endef
export ASSERT_COMPILED

compiled: $(COMPILED)/bin/python
	@set -e; \
	venv="$$(pwd)/$(COMPILED)"; \
	work="$$(mktemp -d)"; \
	trap 'rm -rf "$$work"' EXIT; \
	mkdir "$$work/source" "$$work/run"; \
	cp -R pyproject.toml setup.py $(wildcard README.md LICENSE) txproxy "$$work/source"; \
	cp -R pyproject.toml tests "$$work/run"; \
	find "$$work" \( -name __pycache__ -o -name '*.so' \) -prune -exec rm -rf {} +; \
	if [ ! -e "$$venv/.dev" ] || [ pyproject.toml -nt "$$venv/.dev" ]; then \
		"$$venv/bin/python" -m pip install --quiet "$$work/source[dev]"; \
		rm -rf "$$work/source/build"; \
		touch "$$venv/.dev"; \
	fi; \
	cd "$$work/run"; \
	TXPROXY_COMPILE=1 TXPROXY_COMPILE_REQUIRED=1 "$$venv/bin/python" -m pip wheel --quiet \
		--no-build-isolation --no-deps --wheel-dir "$$work/wheels" "$$work/source"; \
	"$$venv/bin/python" -m pip install --quiet --force-reinstall --no-deps "$$work"/wheels/*.whl; \
	"$$venv/bin/python" -c "$$ASSERT_COMPILED"; \
	"$$venv/bin/python" -m pytest $(IN_WORKERS) tests/wire tests/core
