# A fresh clone needs Python 3.10 to 3.13, make and a C compiler (torch.compile uses it).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo demo-images test soak bench check docs schema reproduce-digits screenshots clean

help:
	@echo "make setup   make a virtual environment in .venv with all that the project needs"
	@echo "make demo    set up, then train a 98 % sparse network on real digits with 2 workers"
	@echo "make demo-images  train a 90 % sparse ResNet on folders of real photographs, in two minutes"
	@echo "make test    set up, then run every test but the slow ones"
	@echo "make check   set up, then lint, types, import layers, the schema and the config reference"
	@echo "make soak    as test, with the slow ones, fifty times as many made-up examples and an hour of damaged runs and inputs"
	@echo "make bench   measure anew what speed is claimed: quarter of an hour on two quiet cores"
	@echo "make reproduce-digits  every method at four sparsities on the digits: a table and plots in runs/digits/"
	@echo "make docs    build the documentation in site/, links checked"
	@echo "make schema  write configs/schema.json, from which editors complete, and the generated pages of docs/"
	@echo "make screenshots  pictures of TensorBoard and the report for docs/, after make demo; needs chromium and chromedriver"
	@echo "make clean   remove .venv and what was built"

setup: $(READY)

$(READY): $(CONSTRAINTS) pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v < (3, 14) else f"$(PYTHON) is Python {v[0]}.{v[1]}; dynsparse needs 3.10 to 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) setuptools wheel
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(READY)
	PYTHON=$(BIN)/python launch/local.sh --workers demo -- --config configs/digits_dsr.yaml --overwrite

demo-images: $(READY) data/sample_images
	PYTHON=$(BIN)/python launch/local.sh --workers demo -- --config configs/sample_images_resnet.yaml --overwrite

data/sample_images: | $(READY)
	$(BIN)/python -m pipelines sample_images $@

# The tests start hundreds of processes: each would compile all sources anew where the environment forbids to keep that.
test soak: export PYTHONDONTWRITEBYTECODE =

test: $(READY)
	$(BIN)/python -m pytest

soak: $(READY)
	HYPOTHESIS_PROFILE=soak $(BIN)/python -m pytest --timeout 3000 -m "slow or not slow"

bench: $(READY)
	$(BIN)/python -m benchmarks

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python dist_train.py --print-schema | diff configs/schema.json - || (echo "configs/schema.json is out of date: make schema"; exit 1)

schema: $(READY)
	$(BIN)/python dist_train.py --print-schema > configs/schema.json
	$(BIN)/python -m docs.config_reference
	$(BIN)/python -m docs.layer_tables
	$(BIN)/python -m docs.method_table

docs: $(READY)
	$(BIN)/mkdocs build --strict

reproduce-digits: $(READY)
	$(BIN)/python -m benchmarks.reproduce --out runs/digits
	$(BIN)/python -m benchmarks.readme

screenshots: $(READY)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --no-build-isolation --editable '.[screenshots]'
	$(BIN)/python docs/take_screenshots.py
	$(BIN)/python docs/take_report_screenshots.py

clean:
	rm -rf $(VENV) build site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
