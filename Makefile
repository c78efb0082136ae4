# `make` lists the targets. PYTHON chooses the interpreter, TORCH_INDEX another build of torch:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
BOUNDS := .venv-bounds
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-vllm test-browser test-bounds quality teacher tune clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## everything that recipes, benchmarks and tests need, into .venv, in the tested versions

$(VENV)/installed: setup.py constraints.txt
	@echo "Installing into $(VENV): a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt -e ".[dev]"
	$(call drop_broken_torchvision,$(RUN))
	@touch $@

# One that was built for another torch breaks transformers at import. Nothing needs it.
define drop_broken_torchvision
@$(1) -c "import torchvision.transforms.v2" 2>/dev/null || { $(1) -m pip uninstall --quiet --yes torchvision; \
	echo "torchvision is left out: it cannot be imported beside this torch. Images are processed by Pillow."; }
endef

demo: install  ## the whole path on real images: label, train, compare, report; a few minutes on two cores
	$(VENV)/bin/madkd compare --config recipes/easy_vqa/compare.yaml --output_dir runs/demo

test: install  ## all tests but the slow ones
	$(RUN) -m pytest -n 2 -m "not slow and not gpu"

test-slow: install  ## the slow tests
	$(RUN) -m pytest -m "slow and not vllm"

# VLLM is an interpreter with vLLM, which wants an environment of its own; or VLLM_SERVER is the address of one that
# runs, and VLLM_MODEL the folder or Hub id of what it serves.
VLLM ?= .venv-vllm/bin/python
test-vllm: export MADKD_VLLM_PYTHON := $(VLLM)
test-vllm: export MADKD_VLLM_SERVER := $(VLLM_SERVER)
test-vllm: export MADKD_VLLM_MODEL := $(VLLM_MODEL)
test-vllm: install  ## a real vLLM gives the numbers of the local teacher (VLLM=python, or VLLM_SERVER= VLLM_MODEL=)
	$(RUN) -m pytest -rs -s -m "vllm"

# Gradio wants an older Pillow than everything else is tested with, and so an environment of its own; npm fetches the
# JavaScript of static Spaces, and axe-core.
SPACES := .venv-spaces
test-browser: export MADKD_GRADIO_PYTHON := $(CURDIR)/$(SPACES)/bin/python
test-browser: export MADKD_SPACE_ASSETS := $(CURDIR)/$(SPACES)/js
test-browser: export MADKD_AXE := $(CURDIR)/$(SPACES)/js/package/axe.min.js
test-browser: install  ## Spaces and the view of a dataset in a real Chromium (which is there, as is npm)
	$(PYTHON) -m venv $(SPACES)
	$(RUN) -m pip install --quiet playwright
	$(SPACES)/bin/python -m pip install --quiet -r madkd_hf/spaces/gradio/requirements.txt \
		gradio==$$($(RUN) -c "from madkd_hf.spaces.card import SDK_VERSION; print(SDK_VERSION)")
	mkdir -p $(SPACES)/js && cd $(SPACES)/js && npm pack --silent axe-core@4.14.1 \
		$$($(CURDIR)/$(RUN) -c "from madkd_hf.spaces.assets import PACKAGES; print(PACKAGES)") && \
		for file in *.tgz; do tar xzf $$file; done
	$(RUN) -m pytest -rs -m slow tests/spaces tests/viewer

test-bounds: export PATH := $(CURDIR)/$(BOUNDS)/bin:$(PATH)
test-bounds:  ## all tests but the slow ones, with the oldest versions that setup.py allows
	$(PYTHON) -m venv $(BOUNDS)
	$(BOUNDS)/bin/python -m pip install --quiet setuptools
	$(BOUNDS)/bin/python tests/bounds.py > $(BOUNDS)/bounds.txt
	$(BOUNDS)/bin/python -m pip install --quiet -r $(BOUNDS)/bounds.txt
	$(BOUNDS)/bin/python -m pip install --quiet --no-deps -e .
	$(call drop_broken_torchvision,$(BOUNDS)/bin/python)
	$(BOUNDS)/bin/python -m pytest -n 2 -m "not slow and not gpu"

quality: install  ## style, and who may import whom
	$(RUN) -m ruff check . && $(RUN) -m ruff format --check . && $(VENV)/bin/lint-imports

teacher: install  ## train the demo's teacher anew, and measure it
	$(RUN) recipes/easy_vqa/teacher/train_teacher.py

tune: install  ## choose learning rates and alpha on validation images
	$(VENV)/bin/madkd tune --config recipes/easy_vqa/tune.yaml --output_dir runs/tune

clean:  ## remove what the targets made
	rm -rf $(VENV) $(BOUNDS) $(SPACES) runs .pytest_cache .ruff_cache .import_linter_cache *.egg-info
