PYTHON ?= python3
SCALE ?= cpu
ARGS ?=
DELVING = .venv/bin/delving
READY = .venv/.ready

.PHONY: help setup test test-long lint reproduce-all readme clean

help:  ## one line per target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(READY)  ## create .venv with everything pinned (other targets do it by themselves)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

test: $(READY) lint  ## lint, then the fast tests
	.venv/bin/python -m pytest -q -n 2

test-long: $(READY)  ## the tests that take minutes
	.venv/bin/python -m pytest -q -m long

lint: $(READY)  ## ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

reproduce-all: $(READY)  ## train and score the nets of Table 2 and Figure 3 at SCALE (cpu)
	for act in relu lrelu prelu_shared prelu; do \
	  $(DELVING) train scale=$(SCALE) model=small14 act=$$act $(ARGS) || exit $$?; done
	for init in he xavier; do \
	  $(DELVING) train scale=$(SCALE) model=small30 act=relu init=$$init $(ARGS) || exit $$?; done
	$(DELVING) list runs

readme: $(READY)  ## refresh the README's generated lists and tables
	.venv/bin/python -m delving.readme README.md

clean:  ## remove .venv and everything generated below outputs/, but not outputs/reference/
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find outputs -mindepth 1 -maxdepth 1 ! -name reference -exec rm -rf {} +
