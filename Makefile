# make demo   trains a small model with and without Reg4Pru, prunes both, and shows what the routing saves
# make demo DATA=path/to/fives     the same on real photographs;  make app  shows its model in a browser
# make test   the tests (make test-slow: those that take minutes);  make lint  ruff;  make conformance  transformers' own model tests

VENV ?= .venv
PYTHON ?= python3
# Any torch of the range in pyproject.toml will do; constraints.txt holds the versions that are tested together.
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin/python
DATA ?=
OUTPUT ?= outputs/demo$(if $(DATA),_fives)

.PHONY: install demo app test test-slow lint conformance

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	$(if $(DATA),FIVES_DIR="$(abspath $(DATA))") $(VENV)/bin/reg4pru study demo$(if $(DATA),_fives) \
		--output_dir "$(OUTPUT)" --runs_dir "$(OUTPUT)/runs" --num_parallel 2

app: install
	$(VENV)/bin/reg4pru app

test: install
	$(RUN) -m pytest -n 2

test-slow: install
	$(RUN) -m pytest -n 2 -m slow --timeout 7200

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

conformance: install
	$(RUN) -m reg4pru.upkeep.conformance
