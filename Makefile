# One verb per target; the same words as the command line's. `make help` lists them.
PYTHON ?= python3.11
VENV   ?= .venv
FAISS  ?= cpu
PY      = $(VENV)/bin/python
EXP    ?= rag_token
ARGS   ?=
RUN_DIR ?=
# RUN_DIR=FOLDER puts the run folder at an exact place.
OVERRIDES = $(ARGS) $(if $(RUN_DIR),run.dir=$(RUN_DIR))

# glibc gives large tensors back to the system after every use; the page faults cost a fifth of a training step on a CPU.
export MALLOC_MMAP_THRESHOLD_ = 1073741824
export MALLOC_TRIM_THRESHOLD_ = 4294967296
export MALLOC_TOP_PAD_ = 268435456

.DEFAULT_GOAL := help
.PHONY: help setup train resume evaluate list keys show data test lint types clean

help: ## this list
	@echo "make TARGET [EXP=rag_token] [ARGS=\"key=value ...\"] [RUN=folder] [RUN_DIR=folder]"
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make .venv and install everything (FAISS=gpu for the GPU index)

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(FAISS),embedded,dev]"
	touch $@

train: $(VENV)/.ready ## train an experiment: make train EXP=rag_token ARGS="trainer.max_steps=50"
	$(PY) -m openbook train $(EXP) $(OVERRIDES)

resume: $(VENV)/.ready ## continue an interrupted run: make resume RUN=runs/rag_token/NAME
	$(PY) -m openbook resume $(RUN) $(ARGS)

evaluate: $(VENV)/.ready ## answer the test questions with a trained run: make evaluate RUN=...
	$(PY) -m openbook evaluate $(RUN) $(ARGS)

list: $(VENV)/.ready ## the experiments and what each one shows
	$(PY) -m openbook list

keys: $(VENV)/.ready ## every configuration key with its unit and default
	$(PY) -m openbook keys $(ARGS)

show: $(VENV)/.ready ## the whole configuration an experiment comes to
	$(PY) -m openbook show $(EXP) $(OVERRIDES)

data: $(VENV)/.ready ## build and check an experiment's data, nothing else
	$(PY) -m openbook data $(EXP) $(OVERRIDES)

test: $(VENV)/.ready ## run the tests
	$(PY) -m pytest $(ARGS)

lint: $(VENV)/.ready ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.ready ## mypy, on the package as it is installed
	rm -rf build/types && $(PY) -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	$(PY) -m mypy --cache-dir build/mypy build/types/openbook

clean: ## remove what make built (runs and data stay)
	rm -rf build $(VENV)
