PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CONFIG := configs/vp/digits_ddpmpp_continuous.py
WORKDIR := demo
MODEL := digits_vp
SAMPLES := samples
SITE := .cache/site
CLAIMS := claims

CORE := sde_lib losses sampling solvers likelihood models/score.py controllable

.DEFAULT_GOAL := help
.PHONY: help demo sample claims test test-slow test-all notebook mutate lint format docs pictures clean

help:  ## List the targets.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /: /' | sort

demo: $(VENV)/installed  ## Train on the handwritten digits, generate new ones and report bits/dim on held-out images.
	$(RUN) main.py --config=$(CONFIG) --workdir=$(WORKDIR) --mode=train
	$(RUN) main.py --config=$(CONFIG) --workdir=$(WORKDIR) --mode=eval

sample: $(VENV)/installed  ## Draw images from a small trained network of zoo/; MODEL=NAME selects it.
	$(RUN) main.py --mode=sample --source=zoo/$(MODEL).safetensors --workdir=$(SAMPLES)

claims: $(VENV)/installed  ## Measure the paper's claims on small data and write docs/claims.md: hours, can be resumed.
	$(RUN) -m studies.claims --folder=$(CLAIMS)

test: $(VENV)/installed-dev  ## Run the quick tests: those not marked slow, long or notebook.
	$(RUN) -m pytest -n 2

test-slow: $(VENV)/installed-dev  ## Run the tests marked slow.
	$(RUN) -m pytest -n 2 -m slow

test-all: test test-slow notebook  ## Run all tests, as before an issue is closed.
	$(RUN) -m pytest -n 2 -m long

notebook: $(VENV)/installed-dev  ## Execute the notebooks and write the executed copies to .cache, to update docs/ from them.
	$(RUN) -m pytest -n 0 -m notebook tests/test_notebook.py

mutate: $(VENV)/installed-dev  ## Draw 100 faults in CORE, and list those that no test notices: hours. SEED=1 draws others.
	$(RUN) -m tests.mutants --count=100 --seed=$(or $(SEED),0) $(CORE)

lint: $(VENV)/installed-dev  ## Check style, format and types.
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

format: $(VENV)/installed-dev  ## Apply the fixes that ruff can make, and its format.
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/installed-dev  ## Rewrite the generated pages, and build the documentation site; warnings are errors.
	$(RUN) -m docs.make_configuration
	rm -rf $(SITE)
	$(RUN) -m sphinx -M html . $(SITE) -c docs/site --fail-on-warning --quiet
	@echo "site: $(SITE)/html/index.html"

pictures: $(VENV)/installed-dev  ## Draw the figures of docs/how_it_works.md by the networks of zoo/.
	$(RUN) -m docs.make_figures

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Error: $(PYTHON) is older than Python 3.11. Select a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
