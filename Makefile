# `make` lists the targets. PYTHON chooses the interpreter, TORCH_INDEX another build of torch:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow quality teacher tune clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## everything that recipes, benchmarks and tests need, into .venv, in the tested versions

$(VENV)/installed: setup.py constraints.txt
	@echo "Installing into $(VENV): a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	@touch $@

demo: install  ## the whole path on real images: label, train, compare, report; a few minutes on two cores
	$(RUN) recipes/compare.py --config recipes/easy_vqa/compare.yaml --output_dir runs/demo

test: install  ## all tests but the slow ones
	$(RUN) -m pytest -n 2 -m "not slow and not gpu"

test-slow: install  ## the slow tests
	$(RUN) -m pytest -m "slow"

quality: install  ## style, and who may import whom
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(VENV)/bin/lint-imports

teacher: install  ## train the demo's teacher anew, and measure it
	$(RUN) recipes/easy_vqa/teacher/train_teacher.py

tune: install  ## choose learning rates and alpha on validation images
	$(RUN) recipes/tune.py --config recipes/easy_vqa/tune.yaml --output_dir runs/tune

clean:  ## remove what the targets made
	rm -rf $(VENV) runs .pytest_cache .ruff_cache .import_linter_cache *.egg-info
