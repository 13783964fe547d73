PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLOOR := .venv-floor
# `make demo DEMO_MB=200`: at most so many megabytes of text of each kind, and an hour of training.
DEMO_MB ?= 12
LARGE := $(filter-out 12,$(DEMO_MB))
DEMO := runs/demo$(if $(LARGE),-large)
DEMO_DATA := data/demo$(if $(LARGE),-large)
DEMO_YAMLS := yamls/demo$(if $(LARGE),/large)
PREPARED := $(DEMO_DATA)/.prepared$(LARGE:%=-%)
END := checkpoints/complete.yaml

.PHONY: setup demo demo-anneal demo-eval test test-all test-floor check docs fuzz soak gpu versions clean

setup: $(VENV)/.installed

# The modern stack: uv reads [tool.uv] override-dependencies and lifts Composer's stale caps.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,data,eval,serve]'
	touch $@

# The floor: what plain pip resolves to, without any override.
$(FLOOR)/.installed: pyproject.toml
	$(PYTHON) -m venv $(FLOOR)
	$(FLOOR)/bin/python -m pip install --quiet --upgrade pip
	$(FLOOR)/bin/python -m pip install --quiet -e '.[dev]'
	touch $@

# Real text found on this machine, a tokenizer, shards, three phases, a Hugging Face folder.
# Every step picks up where it was: interrupt it, or run it again, and nothing is done twice.
demo: setup $(DEMO)/report.html $(DEMO)/evaluation.txt
	@cat $(DEMO)/evaluation.txt
	@echo
	@echo 'run folders  $(DEMO)/phase1 $(DEMO)/phase2 $(DEMO)/phase3 (metrics.jsonl in each)'
	@echo 'model        $(DEMO)/model'
	@echo 'report       $(DEMO)/report.html'

# A phase is done when its checkpoints say so. Started again, since a YAML is newer, it goes on if it is
# to be longer now; of other changes it says that they take a new run folder (`make clean`).
$(DEMO)/phase1/$(END): $(PREPARED)
$(DEMO)/phase2/$(END): $(DEMO)/phase1/$(END)
$(DEMO)/phase3/$(END): $(DEMO)/phase2/$(END) $(DEMO_YAMLS)/phase2.yaml
$(DEMO)/%/$(END): $(DEMO_YAMLS)/%.yaml $(DEMO_YAMLS)/phase1.yaml yamls/demo/phase1.yaml yamls/models/tiny.yaml
	$(BIN)/composer main.py $<
	touch $@

$(DEMO)/model/model.safetensors: $(DEMO)/phase3/$(END)
	$(BIN)/tessera export $(DEMO)/phase3 --out $(DEMO)/model

$(DEMO)/report.html: $(DEMO)/phase3/$(END)
	$(BIN)/tessera report $(DEMO)/phase1 $(DEMO)/phase2 $(DEMO)/phase3 --out $@

$(DEMO)/evaluation.txt: $(DEMO)/model/model.safetensors
	$(BIN)/tessera evaluate $(DEMO)/model --config $(DEMO_YAMLS)/phase3.yaml \
		--fill 'def __init__([MASK], name):' \
		--fill 'if value is not [MASK]:' \
		--fill '    return [MASK].name' \
		--fill 'Return a copy [MASK] the array.' \
		--fill 'This function is [MASK] to compute the mean.' > $@.unfinished
	mv $@.unfinished $@

# Once: packages installed later would be other text, and other text another tokenizer.
$(PREPARED): | setup
	$(BIN)/python data_prep/harvest.py --mb $(DEMO_MB) --out $(DEMO_DATA)/text
	$(BIN)/python data_prep/train_tokenizer.py $(addprefix $(DEMO_DATA)/text/,code science web) --out $(DEMO_DATA)/tokenizer
	$(BIN)/python data_prep/tokenize.py --shard-size 1mb --out $(DEMO_DATA)
	touch $@

ifneq ($(and $(LARGE),$(filter demo-anneal demo-eval,$(MAKECMDGOALS))),)
$(error demo-anneal and demo-eval are of the five minutes' demo: leave out DEMO_MB)
endif

# The demo's pre-decay checkpoint annealed on one source, beside phase 3's general mixture.
demo-anneal: demo
	$(BIN)/composer main.py yamls/demo/anneal.yaml
	$(BIN)/tessera export runs/demo/anneal --out runs/demo/annealed-model
	@echo 'before annealing (phase 2), annealed on science, annealed on the general mixture (phase 3)'
	$(BIN)/tessera evaluate runs/demo/phase2 runs/demo/anneal runs/demo/phase3 --config yamls/demo/anneal.yaml

# What the demo's model is good for, against the same shape with random weights; and the phases.
demo-eval: demo
	$(BIN)/python data_prep/harvest_tasks.py
	$(BIN)/tessera evaluate phase1=$(DEMO)/phase1 phase2=$(DEMO)/phase2 phase3=$(DEMO)/phase3 \
		--suite mlm tasks.masked-lm.max_tokens=20_000 tasks.masked-lm.short=128 \
		tasks.masked-lm.pseudo_perplexity_tokens=512 --config yamls/demo/phase3.yaml \
		--out $(DEMO)/results --workers 2
	$(BIN)/tessera evaluate pretrained=$(DEMO)/phase3 untrained=random:$(DEMO)/phase3 \
		--suite demo --out $(DEMO)/results --workers 2
	$(BIN)/tessera evaluate pretrained=$(DEMO)/phase3 --suite efficiency \
		tasks.speed.documents=16 tasks.speed.long=1024 tasks.speed.runs=3 --out $(DEMO)/results

clean:
	rm -rf data/demo data/demo-large runs/demo runs/demo-large

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

test-all: setup
	$(BIN)/python -m pytest -m "not gpu"

test-floor: $(FLOOR)/.installed
	$(FLOOR)/bin/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, in docs/site. A dead link is an error; with --quiet it would not be, MkDocs counts what it logs.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml
	@echo 'site         docs/site/index.html'

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[docs]'
	touch $@

# Random edits of every file a user may have; a minute unless told otherwise.
#   make fuzz SECONDS=600 SEED=7        make fuzz SEED=7 ONLY=1234
fuzz: setup
	$(BIN)/python tests/faults/fuzz.py $(if $(SEED),--seed $(SEED)) $(if $(ONLY),--only $(ONLY)) \
		$(if $(SECONDS),--seconds $(SECONDS))

# Runs that are ended, starved and damaged at random, beside one that is left alone.
#   make soak MINUTES=60 SEED=7
soak: setup
	$(BIN)/python tests/faults/soak.py $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES))

# What only a GPU can tell, in pieces of nine minutes: runs/gpu/summary.md.
gpu: setup
	$(BIN)/python benchmarks/gpu.py

# The versions that the image has: those installed here, on which the suite has just passed.
versions: setup
	$(BIN)/uv pip freeze --python $(BIN)/python --exclude-editable | sed 's/+cu[0-9]*//' > .venv/here.txt
	echo uv | $(BIN)/uv pip compile pyproject.toml - --universal --python-version 3.11 --quiet \
		--constraint .venv/here.txt --no-header --no-annotate --output-file versions.txt
