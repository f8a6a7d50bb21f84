# Needs Python >= 3.11 with venv and pip, nothing else. PYTHON=python3.12 takes another one;
# TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches the small CPU build of torch.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=

.PHONY: demo test coverage check fuzz bench notebooks clean

demo: $(VENV)/.demo
	$(BIN)/inat demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal

# The tests once more, in half as long again, and what of inat/ they run.
coverage: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal --cov=inat --cov-report=term

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --noconftest tests/test_floors.py

# Damaged files of every kind, 10,000 of each where `make test` has 200, and again as many for each
# reader by atheris, where that installs; takes about an hour.
fuzz: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_fuzz.py --hypothesis-profile=long -n logical
	-$(BIN)/pip install --quiet --no-compile --only-binary :all: atheris
	$(BIN)/python tests/fuzz_atheris.py

# Speed against the named peers, in one run; takes some 15 minutes.
bench: $(VENV)/.dev
	$(BIN)/python -m pytest tests/benchmarks/ -s --override-ini=addopts=

notebooks: $(VENV)/.dev
	$(BIN)/python tests/run_notebooks.py

clean:
	rm -rf $(VENV) build demo *.egg-info

# pip compiles with one processor, this with all; a few files of others are no Python 3.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --no-compile torch torchvision --index-url $(TORCH_INDEX))
	touch $@

$(VENV)/.demo: pyproject.toml | $(VENV)/.torch
	$(BIN)/pip install --quiet --no-compile --editable ".[demo]"
	$(COMPILE)
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/.torch
	$(BIN)/pip install --quiet --no-compile --editable ".[demo,dev]"
	$(COMPILE)
	touch $@ $(VENV)/.demo
