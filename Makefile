PYTHON ?= python3
SCALE ?= cpu
ARGS ?=
DELVING = .venv/bin/delving
READY = .venv/.ready
VERSION = -c "import sys; print(*sys.version_info[:2])"
ON_A_GPU = $(patsubst %,tests/test_%.py,kernels spp replay stem signal)

.PHONY: help setup test test-long lint reproduce-all reference readme clean

help:  ## one line per target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with everything pinned (other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is Python " + \
	  sys.version.split()[0] + ": 3.11 or newer is needed, as in make setup PYTHON=python3.12")'
	@clear=; [ "$$(.venv/bin/python $(VERSION) 2>&1)" = "$$($(PYTHON) $(VERSION))" ] || clear=--clear; \
	  $(PYTHON) -m venv $$clear .venv
	@echo 'setting up .venv (PyTorch and others, some 6 GB): a few minutes without a word'
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@echo 'compiling for this machine what is faster so: half a minute'
	.venv/bin/delving doctor
	@touch $@

test: $(READY) lint  ## lint, then the fast tests
	.venv/bin/python -m pytest -q -n 2
	@if command -v nvidia-smi > /dev/null; then \
	  DELVING_GPU_TESTS=1 .venv/bin/python -m pytest -q $(ON_A_GPU); fi

test-long: $(READY)  ## the tests that take minutes; tries and failures go to outputs/tally.md
	@mkdir -p outputs
	.venv/bin/python -m pytest -q -n 2 -m 'long or tally' --tally=outputs/tally.md

lint: $(READY)  ## ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

reproduce-all: $(READY)  ## every table and figure at SCALE (cpu): train what is missing, judge, report
	$(DELVING) reproduce all scale=$(SCALE) $(ARGS)

reference: $(READY)  ## commit-sized records of the runs at SCALE (cpu), to outputs/reference/SCALE
	.venv/bin/python -m delving.reference outputs/$(SCALE) outputs/reference/$(SCALE)

readme: $(READY)  ## refresh the READMEs' generated lists and tables
	.venv/bin/python -m delving.readme

clean:  ## remove .venv and everything generated below outputs/, but not outputs/reference/
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
