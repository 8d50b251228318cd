# What a newcomer and a contributor type. Each target does its own set-up and is cheap when it is done already.
#
#   make demo     see COVEN at work (as root, or by sudo; without either on files)
#   make test     everything that is tested; the list of skips is at the end
#   make fuzz     the fuzzers for longer, as many at once as there are cores: FUZZ_SECONDS each (default 600)
#   make chaos    everything that can go wrong, under traffic, for CHAOS_SECONDS (default 600), and the supervisor's death at every point
#   make bench    measure everything (about a quarter of an hour, as root): build/bench.json, docs/benchmarks.md
#   make lint     the style checks alone
#   make clean    away with what was built; the sources stay

PYTHON ?= $(firstword $(wildcard /usr/bin/python3 /usr/local/bin/python3) python3)
VENV := .venv
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest
ARGS ?=

SOURCES := setup.cfg setup.py pyproject.toml coven/dataplane/build.py \
	$(shell find coven -name '*.[ch]' ! -name _core.c -o -name '*.def')

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz chaos bench lint clean

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: $(VENV)/stamp-run
	@.ci/demo $(ARGS)

test: $(VENV)/stamp-test
	$(PYTEST) $(ARGS)

lint: $(VENV)/stamp-test
	$(PYTEST) -q tests/test_style.py $(ARGS)

fuzz: $(VENV)/stamp-test
	@$(PYTEST) tests/fuzz --collect-only -q -p no:cacheprovider | grep :: | \
		COVEN_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) xargs -P $$(nproc) -n 1 $(PYTEST) -p no:cacheprovider $(ARGS)

chaos: $(VENV)/stamp-test
	COVEN_CHAOS_SECONDS=$(or $(CHAOS_SECONDS),600) $(PYTEST) -s tests/e2e/test_chaos.py $(ARGS)
	$(PYTEST) -m chaos $(ARGS)

bench: $(VENV)/stamp-test
	@$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[bench]'
	$(RUN) -m coven bench --json build/bench.json $(ARGS)
	$(RUN) -m tests.bench build/bench.json

# A virtual environment with COVEN in it, editable: Python sources are used as they are, C is compiled again
# when one of its files changed.
$(VENV)/stamp-run: .ci/setup $(SOURCES)
	@PYTHON="$(PYTHON)" .ci/setup run
	@touch $@

# The same, and what the tests need besides.
$(VENV)/stamp-test: .ci/setup $(SOURCES)
	@PYTHON="$(PYTHON)" .ci/setup test
	@touch $@ $(VENV)/stamp-run

clean:
	rm -rf $(VENV) build dist coven.egg-info coven/bin coven/dataplane/_core.c coven/dataplane/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
