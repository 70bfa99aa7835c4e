# One verb per target; the same words as the command line's. `make help` lists them.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(name)),$(name))))
VENV   ?= .venv
# cpu or gpu, as the environment was made; cpu where there is none yet.
FAISS  ?= $(if $(wildcard $(VENV)/.ready-gpu),gpu,cpu)
PY      = $(VENV)/bin/python
READY   = $(VENV)/.ready-$(FAISS)
OTHER_FAISS = $(if $(filter gpu,$(FAISS)),faiss-cpu,faiss-gpu)
EXP    ?= rag_token
ARGS   ?=
RUN_DIR ?=
SEEDS  ?= 0 1 2
RUNS   ?= runs
# RUN_DIR=FOLDER puts the run folder at an exact place.
COMPARED = $(EXPS) $(ARGS) --seeds "$(SEEDS)" --test-n-docs "$(TEST_N_DOCS)" --runs "$(RUNS)" --name "$(NAME)"
OVERRIDES = $(ARGS) $(if $(RUN_DIR),run.dir=$(RUN_DIR))

# glibc gives large tensors back to the system after every use; the page faults cost a fifth of a training step on a CPU.
export MALLOC_MMAP_THRESHOLD_ = 1073741824
export MALLOC_TRIM_THRESHOLD_ = 4294967296
export MALLOC_TOP_PAD_ = 268435456

# Threads that spin while they wait take the core from whoever else could use it (benchmarks/training/neighbour.py).
export OMP_WAIT_POLICY ?= PASSIVE

# QUIET=1 prints only warnings, errors and the result.
export OPENBOOK_QUIET := $(if $(filter-out 0,$(QUIET)),1,$(OPENBOOK_QUIET))

# A variable that no target reads would be left out without a word: exp=tiny would train rag_token.
KNOWN = PYTHON VENV FAISS EXP EXPS ARGS RUN RUNS RUN_DIR SEEDS TEST_N_DOCS NAME DRY DOCS SWEEP SWEEP_ID COUNT BACKEND JSON NODES GPUS \
	TIME MORE N MATCH Q CORPUS TO FROM FILE IN OUT PORT PARTS QUICK ONLY QUIET OPENBOOK OMP_% MALLOC_% CUDA_% HF_% NCCL_% WANDB_%
GIVEN = $(foreach name,$(.VARIABLES),$(if $(filter command line,$(origin $(name))),$(name)))
UNKNOWN := $(filter-out $(KNOWN) MAKEFLAGS MAKEOVERRIDES CURDIR SHELL -%,$(GIVEN))
ifneq ($(UNKNOWN),)
$(error unknown variable $(firstword $(UNKNOWN)): expected one of $(KNOWN)$(foreach near,$(filter $(shell echo $(firstword $(UNKNOWN)) | tr a-z A-Z) $(firstword $(UNKNOWN))S,$(KNOWN)),. Did you mean $(near)?))
endif

.DEFAULT_GOAL := help
.PHONY: help setup train resume evaluate hot-swap index-add compare sweep submit doctor plan answers ask serve export import report watch list keys show data convert bench-index bench-data bench-decode bench bench-gpu faults test lint types clean

help: ## show this list
	@echo "make TARGET [EXP=rag_token] [ARGS=\"key=value ...\"] [RUN=folder] [RUN_DIR=folder] [QUIET=1]"
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-12s %s\n", $$1, $$2}'

setup: $(READY) ## make .venv and install everything (FAISS=gpu for the GPU index)

$(READY): pyproject.toml constraints.txt
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip uninstall --quiet --yes $(OTHER_FAISS) 2>/dev/null
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(FAISS),embedded,formats,lora,sentencepiece,serve,wandb,dev]"
	rm -f $(VENV)/.ready-* && touch $@

train: $(READY) ## train an experiment: make train EXP=rag_token ARGS="trainer.max_steps=50"
	$(PY) -m openbook train $(EXP) $(OVERRIDES)

resume: $(READY) ## continue an interrupted run: make resume RUN=runs/rag_token/NAME
	$(PY) -m openbook resume $(RUN) $(ARGS)

evaluate: $(READY) ## answer the test questions with a trained model (or RUN=EXPERIMENT untrained): make evaluate RUN=...
	$(PY) -m openbook evaluate $(RUN) $(ARGS)

hot-swap: $(READY) ## answer from two conflicting corpora without retraining: make hot-swap RUN=... (DOCS=1: also write docs/)
	$(PY) -m openbook hot-swap $(RUN) $(ARGS)
	$(if $(DOCS),$(PY) -m benchmarks.common.docs_results hot-swap $(RUN))

index-add: $(READY) ## add passages to the corpus that a run answers from: make index-add RUN=runs/rag_token/NAME FILE=passages.jsonl
	$(PY) -m openbook index add $(RUN) $(FILE) $(ARGS)

compare: $(READY) ## tabulate experiments over seeds; trains missing runs: make compare EXPS="rag_token bm25" SEEDS="0 1 2" (DRY=1 DOCS=1 RUNS= NAME= TEST_N_DOCS=)
	$(PY) -m openbook compare $(COMPARED) $(if $(DRY),--dry-run)
	$(if $(DOCS),$(if $(DRY),,$(PY) -m benchmarks.common.docs_results compare $(COMPARED)))

sweep: $(READY) ## train many settings: make sweep EXP=rag_token SWEEP=refresh (COUNT= BACKEND=wandb SWEEP_ID= DRY=1 RUNS=)
	$(PY) -m openbook sweep $(EXP) $(SWEEP) $(ARGS) --count "$(or $(COUNT),0)" --backend "$(or $(BACKEND),local)" $(if $(SWEEP_ID),--sweep-id "$(SWEEP_ID)") --runs "$(RUNS)" $(if $(DRY),--dry-run)

doctor: $(READY) ## say whether an experiment can run here, line by line: make doctor EXP=rag_token (JSON=1)
	$(PY) -m openbook doctor $(EXP) $(OVERRIDES) $(if $(JSON),--json)

NODES ?= 1
GPUS  ?= 1
TIME  ?= 24:00:00
SBATCH = OPENBOOK="$${OPENBOOK:-$(abspath $(PY)) -m openbook}" sbatch --job-name=openbook-$(notdir $(EXP)) --nodes=$(NODES) \
	--ntasks-per-node=$(GPUS) --gpus-per-node=$(GPUS) --time=$(TIME) --export=ALL $(MORE) \
	experiments/cluster/slurm.sh $(EXP) $(ARGS)

submit: $(READY) ## submit an experiment to SLURM: make submit EXP=rag_token NODES=1 GPUS=8 (TIME= MORE="--partition=a" DRY=1)
	$(PY) -m openbook show $(EXP) $(ARGS) > /dev/null
	$(if $(DRY),@echo '$(SBATCH)',$(SBATCH))

plan: $(READY) ## estimate the memory, disk and time that an experiment's models and index need
	$(PY) -m openbook plan $(EXP) $(OVERRIDES)

answers: $(READY) ## print answers and the passages they are based on: make answers RUN=runs/rag_token/NAME [N=10] [MATCH=text]
	$(PY) -m openbook answers $(RUN) $(if $(MATCH),"$(MATCH)") $(if $(N),--n $(N))

ask: $(READY) ## ask a trained run: make ask RUN=runs/rag_token/NAME opens a page, Q="..." prints one answer (CORPUS=FILE: one more to ask)
	$(PY) -m openbook ask $(RUN) $(if $(Q),"$(Q)") $(if $(CORPUS),--corpus "$(CORPUS)") $(ARGS)

serve: $(READY) ## answer other programs over HTTP: make serve RUN=runs/rag_token/NAME [ARGS="serve.port=8000"]
	$(PY) -m openbook serve $(RUN) $(ARGS)

export: $(READY) ## write a run's models, index and card for other programs: make export RUN=... TO=FOLDER [ARGS="--push OWNER/NAME"]
	$(PY) -m openbook export $(RUN) $(TO) $(ARGS)

import: $(READY) ## make a run of transformers' RAG, or safetensors of pickled weights: make import FROM=FOLDER RUN=FOLDER
	$(PY) -m openbook import $(FROM) $(RUN) $(ARGS)

report: $(READY) ## regenerate a run's report.html and report.png
	$(PY) -m openbook report $(RUN)

watch: $(READY) ## serve a run's report on 127.0.0.1 while it goes on: make watch RUN=runs/rag_token/NAME [PORT=8765]
	$(PY) -m openbook watch $(RUN) $(if $(PORT),--port $(PORT))

list: $(READY) ## list the experiments with a one-line description each
	$(PY) -m openbook list

keys: $(READY) ## list the configuration keys with defaults and units
	$(PY) -m openbook keys $(ARGS)

show: $(READY) ## print the complete configuration of an experiment
	$(PY) -m openbook show $(EXP) $(OVERRIDES)

data: $(READY) ## build and validate an experiment's data only; counts duplicates and leaks
	$(PY) -m openbook data $(EXP) $(OVERRIDES)

convert: $(READY) ## write data in another format as this project's files: make convert IN=FILE OUT=FOLDER
	$(PY) -m openbook convert $(IN) $(OUT) $(ARGS)

bench-index: $(READY) ## benchmark the index on this machine: benchmarks/index.json, about 20 minutes
	OUT=benchmarks/index.json; for part in encode amortized memory plan families shards staleness; do $(PY) -m benchmarks.index.$$part --out $$OUT || exit 1; done
	$(PY) -m benchmarks.common.draw

bench-data: $(READY) ## benchmark the building of a corpus of a million passages: benchmarks/data.json, about 10 minutes
	$(PY) -m benchmarks.data.build --out benchmarks/data.json

# Both sides with the allocator as it comes, as a user of transformers has it.
bench-decode: $(READY) ## benchmark decoding against transformers: benchmarks/decode.json and docs/results.md, about 10 minutes
	unset MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_; $(PY) -m benchmarks.decoding.decode --out benchmarks/decode.json && \
	$(PY) -m benchmarks.decoding.decode_sequence --questions 1 --out benchmarks/decode.json
	$(PY) -m benchmarks.common.publish

# decode has both sides with the allocator as it comes, like bench-decode.
bench: $(READY) ## steps, search, host work, encoding, decoding and the cost model: benchmarks/latest.json, docs/performance.md, about 45 minutes
	OUT=benchmarks/latest.json; for part in training.step training.host "index.search --million" index.encode marginal.fused training.safety training.attention training.passage_gradient training.cost_model training.ranks index.plan; do $(PY) -W ignore -m benchmarks.$$part --out $$OUT || exit 1; done
	unset MALLOC_MMAP_THRESHOLD_ MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_; $(PY) -m benchmarks.decoding.decode --repeats 1 --out benchmarks/latest.json
	$(PY) -m benchmarks.common.performance

# Every part stands alone: PARTS="loss search" measures these two. QUICK=1: tiny sizes, on a CPU too; nothing is written.
PARTS ?= step loss search encode
bench-gpu: $(READY) ## on a GPU: step, loss, search and encoding beside transformers and torch: benchmarks/gpu.json, docs/gpu.md (PARTS= QUICK=1)
	for part in $(PARTS); do $(PY) -W ignore -m benchmarks.gpu.$$part $(if $(QUICK),--quick) || exit 1; done
	$(if $(QUICK),,$(PY) -m benchmarks.gpu.page)

faults: $(READY) ## plant faults of every kind and count what is survived: docs/faults.json, docs/reliability.md (QUICK=1 ONLY=kills)
	$(PY) -m benchmarks.faults.run $(if $(QUICK),--quick) $(if $(ONLY),--only "$(ONLY)")

test: $(READY) ## run the tests, a process on every core: make test ARGS="tests/objectives -n 0" (all in one process)
	$(PY) -m pytest -n auto --dist loadfile $(ARGS)

lint: $(READY) ## ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(READY) ## mypy, on the package as it is installed
	rm -rf build/types build/lib && $(PY) -m pip install --quiet --no-deps --no-build-isolation --target build/types .
	$(PY) -m mypy --cache-dir build/mypy build/types/openbook

clean: ## remove what make built (keeps runs and data)
	rm -rf build $(VENV)
