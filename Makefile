# Everything people and .ci/run call. Each target makes the virtual environment it needs; a second run is quick, because the
# stamp file is newer than pyproject.toml.
#   make demo | test | lint | bench | coverage | format | compiled | test-compiled | host-packages | clean
#   PYTHON=python3.13 VENV=.venv-3.13 make test     another Python, in an environment of its own
#   make test REQUIRE_GUEST=1                       a guest test that cannot run here is a failure, not a skip
#   make test PYTEST_ARGS="-m 'not guest' -x"       anything else pytest understands; BENCH_ARGS for make bench
#   make compiled                                   a compiled build in build/compiled, a peer for make bench
#   make test-compiled                              the whole test suite on it; PYTEST_ARGS as above
#   make test JOBS=0                                one process, as a debugger wants it; otherwise one for each core
#   make soak                                       rows of the load at a scale that takes minutes, left out of make test
#   make coverage                                   the same tests, traced: branch coverage, and its floor; takes twice as long

PYTHON ?= python3
VENV ?= .venv
REQUIRE_GUEST ?=
PYTEST_ARGS ?=
JOBS ?= auto
BENCH_ARGS ?=
# Per cent of branches and lines that the tests' own process has to run; what runs in `netstack` processes of guest tests
# is not counted. Judged for whole runs only, by `make coverage`: tracing makes the unit tests 2.7 times as long.
COVERAGE_FLOOR ?= 80

STAMP := $(VENV)/.installed
BIN := $(VENV)/bin
COMPILED := build/compiled$(patsubst .venv%,%,$(VENV))
COMPILED_VENV := $(VENV)-compiled
COMPILED_WHEEL := $(COMPILED_VENV)/wheel
# The tests run in a copy of the checkout whose packages are the installed ones: nothing else is there to be imported.
COMPILED_CHECKOUT := $(COMPILED_VENV)/checkout
SOURCES := $(shell find netstack guest_iface -name '*.py')

.PHONY: help demo test soak lint bench bench-replay coverage format compiled test-compiled host-packages venv clean

help:
	@sed -n '3,11s/^# \{0,1\}//p' Makefile

demo: $(STAMP)
	@bash .ci/debian-packages demo
	$(BIN)/netstack demo

test: host-packages $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) $(if $(REQUIRE_GUEST),--require-guest) $(PYTEST_ARGS)

soak: $(STAMP)
	$(BIN)/python -m pytest -n 0 -m soak --soak --durations=0 $(PYTEST_ARGS)

coverage: host-packages $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term $(if $(PYTEST_ARGS),,--cov-fail-under=$(COVERAGE_FLOOR)) \
		$(if $(REQUIRE_GUEST),--require-guest) $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	@bash .ci/debian-packages bench
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-replay: $(STAMP)
	$(BIN)/python -m bench.replay

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# As root: installs the Debian packages that real-guest tests need and that are missing. Otherwise: says which tests will be skipped.
host-packages:
	@bash .ci/debian-packages guest

venv: $(STAMP)

# --group needs pip 25.1; Debian's Python brings 23.
$(STAMP): pyproject.toml
	@bash .ci/debian-packages venv "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

compiled: $(COMPILED)/.built

$(COMPILED)/.built: $(SOURCES) pyproject.toml hatch_build.py
	@bash .ci/debian-packages venv "$(PYTHON)"
	@bash .ci/debian-packages compile "$(PYTHON)"
	rm -rf $(COMPILED) $(COMPILED_WHEEL)
	$(PYTHON) -m venv $(COMPILED_VENV)
	$(COMPILED_VENV)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(COMPILED_VENV)/bin/python -m pip wheel --quiet --no-deps --wheel-dir $(COMPILED_WHEEL) .
	$(COMPILED_VENV)/bin/python -m pip install --quiet --no-deps --target $(COMPILED) $(COMPILED_WHEEL)/netstack-*.whl
	@touch $@

test-compiled: host-packages compiled
	$(COMPILED_VENV)/bin/python -m pip install --quiet --group dev $(COMPILED_WHEEL)/netstack-*.whl
	$(COMPILED_VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall $(COMPILED_WHEEL)/netstack-*.whl
	rm -rf $(COMPILED_CHECKOUT)
	mkdir $(COMPILED_CHECKOUT)
	cp -R tests fixtures docs bench pyproject.toml Makefile *.md $(COMPILED_CHECKOUT)
	cd $(COMPILED_CHECKOUT) && ln -s ../lib/python3*/site-packages/netstack ../lib/python3*/site-packages/guest_iface .
	cd $(COMPILED_CHECKOUT) && ../bin/python -m pytest -n $(JOBS) --require-compiled \
		$(if $(REQUIRE_GUEST),--require-guest) $(PYTEST_ARGS)

clean:
	rm -rf $(VENV) .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage dist build
