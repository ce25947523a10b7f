# Two commands do all the set-up: `make demo` shows a report, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from: empty for pip's own index, or the URL of a CPU or CUDA index.
TORCH_INDEX ?=

BIN := $(VENV)/bin
# Without setuptools' warning that an editable install is one.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet
SOURCES := $(shell find facade probes diagnostics reports lab -name '*.py' -o -name '*.html' -o -name '*.css' -o -name '*.js' 2>/dev/null)
KERNEL := setup.py $(wildcard probes/kernels/*.c probes/kernels/*.h)
# The editable install links file by file: it is renewed when the set of files changes, or the text of what is compiled.
FILES := $(VENV)/.files-$(shell (printf '%s\n' $(SOURCES) | sort; cat $(KERNEL)) | cksum | cut -d' ' -f1)

.PHONY: demo test check format install zoo identity fuzz verdicts spikes theory lab attribution bench docs release clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

demo: $(VENV)/.demo $(FILES) ## install, train a small GPT-2 and four reference transformers under probes, write two reports
	$(BIN)/rheoscope demo

test: $(VENV)/.dev $(FILES) ## install what the tests need and run them all
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

check: $(VENV)/.dev $(FILES) ## lint, format check, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

zoo: $(VENV)/.dev $(FILES) ## discover every model type of transformers, write docs/zoo.md (resumable; timm is optional)
	-$(BIN)/python -m pip install --quiet --no-deps timm
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m zoo
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m zoo.timm_types

identity: $(VENV)/.dev $(FILES) ## train 70 model types with and without probes, compare bit by bit, write docs/bit_identity.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m zoo.identity

fuzz: $(VENV)/.dev $(FILES) ## damage a thousand recordings, hand them to the commands, write docs/fuzzing.md
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz

verdicts: $(VENV)/.dev $(FILES) ## plant faults in many models, judge them, write docs/verdicts.md (SEED=7 for others)
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:tests $(BIN)/python -m verdicts --seed $(or $(SEED),0)

spikes: $(VENV)/.dev $(FILES) ## make spikes of the loss whose cause is planted, bisect them, write docs/spikes.md
	OMP_NUM_THREADS=1 PYTHONPATH=benchmarks:tests $(BIN)/python benchmarks/spikes.py docs/spikes.md

theory: $(VENV)/.dev $(FILES) ## measure the closed forms and the forecasts, write docs/theory.md and docs/forecasts.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/theory.py docs/theory.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/forecasts.py docs/forecasts.md

lab: $(VENV)/.dev $(FILES) ## carry out every experiment of the lab, quick, and write docs/lab.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/lab.py docs/lab.md

WEIGHTS ?=
attribution: $(VENV)/.dev $(FILES) ## measure whom attribution names and how it adds up, write docs/attribution.md
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/attribution.py docs/attribution.md $(if $(WEIGHTS),--weights $(WEIGHTS))

bench: $(VENV)/.dev $(FILES) ## measure what probes and discovery cost on this machine; writes docs/performance.md
	$(BIN)/python benchmarks/report.py docs/performance.md

docs: $(VENV)/.docs $(FILES) ## build the documentation into site/; any warning is an error
	$(BIN)/python benchmarks/reference.py docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

release: $(VENV)/.dev ## build sdist and wheel into dist/, install the wheel where no compiler is, run README's example there
	PYTHONPATH=tests $(BIN)/python -m release

format: $(VENV)/.dev ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.dev $(FILES) ## make the environment for development

$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip setuptools wheel
	$(INSTALL) -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

$(VENV)/.demo: $(VENV)/.torch setup.cfg pyproject.toml
	$(INSTALL) -c constraints.txt -e '.[hf]'
	@rm -f $(VENV)/.files-* && touch $(FILES) $@

$(VENV)/.dev: $(VENV)/.torch setup.cfg pyproject.toml
	$(INSTALL) -c constraints.txt -e '.[hf,dev]'
	@rm -f $(VENV)/.files-* && touch $(FILES) $@

$(VENV)/.docs: $(VENV)/.torch setup.cfg pyproject.toml
	$(INSTALL) -c constraints.txt -e '.[docs]'
	@rm -f $(VENV)/.files-* && touch $(FILES) $@

$(VENV)/.files-%: $(VENV)/.torch
	$(INSTALL) --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.files-*
	@touch $@

clean: ## remove the environment and what was built
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
