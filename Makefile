PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
CONFIG := configs/vp/digits_ddpmpp_continuous.py
WORKDIR := demo

.PHONY: demo test test-slow notebook lint format clean

demo: $(VENV)/installed  ## Learn the handwritten digits, then generate some and say what they cost in bits.
	$(RUN) main.py --config=$(CONFIG) --workdir=$(WORKDIR) --mode=train
	$(RUN) main.py --config=$(CONFIG) --workdir=$(WORKDIR) --mode=eval

test: $(VENV)/installed-dev  ## The whole suite but for what is marked slow.
	$(RUN) -m pytest -n 2

test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2 -m slow

notebook: $(VENV)/installed-dev  ## Runs the tutorial from nothing; the run is left in .cache, to renew its outputs with.
	$(RUN) -m pytest -n 0 -m notebook tests/test_notebook.py

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache
