# make demo: install, pre-train on the embedded digits, probe, print the result
# make test: install, run every test
# make lint: style and types
# make docs: the documentation site, into build/site

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DOCS := .venv-docs
# Versions that were tested together, one file per Python generation.
CONSTRAINTS := $(shell $(PYTHON) -c "import sys; print('constraints/' + \
  ('py311.txt' if sys.version_info < (3, 12) else 'py312.txt'))" 2>/dev/null)
PROCESSES = $(shell $(PYTHON) -c "import os; cores = os.cpu_count() or 1; \
  memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'); \
  print(max(1, min(4, cores + 1, memory // 4_000_000_000)))")
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet

.PHONY: demo test lint docs clean

demo: $(VENV)/.installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m launch.demo

# A process for each core and one more, as tests also wait; four at most, of 4 GB each.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check

# A broken link ends it. The variable silences a notice of the theme's makers.
docs: $(DOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build
	@echo "The site is in build/site; open build/site/index.html"

$(BIN)/python $(DOCS)/bin/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  (echo "litevit_jax needs Python 3.11 or newer, $(PYTHON) is older; try \
	  make PYTHON=python3.12 $(MAKECMDGOALS)" && exit 1)
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/.installed: $(BIN)/python pyproject.toml $(CONSTRAINTS)
	@echo "Installing into $(VENV) (a few minutes the first time)"
	$(PIP) -c $(CONSTRAINTS) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -c $(CONSTRAINTS) -e ".[dev,tf]"
	@touch $@

# MkDocs and its plug-ins alone: it reads the package's sources and imports none.
$(DOCS)/.installed: $(DOCS)/bin/python constraints/docs.txt
	@echo "Installing into $(DOCS) (a minute the first time)"
	@$(DOCS)/bin/python -m pip --disable-pip-version-check install --quiet --retries 1 \
	  -r constraints/docs.txt || (echo "make docs: could not install the packages in" \
	  "constraints/docs.txt (see above); the first time it needs the network" >&2; exit 1)
	@touch $@

clean:
	rm -rf $(VENV) $(DOCS) build *.egg-info .cache
