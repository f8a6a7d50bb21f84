# Needs Python >= 3.11 with venv and pip, nothing else. PYTHON=python3.12 takes another one;
# TORCH_INDEX=https://download.pytorch.org/whl/cpu fetches the small CPU build of torch.
# The versions are those that passed the tests last; CONSTRAINTS= takes the newest ones instead.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
CONSTRAINTS ?= .ci/constraints.txt

.PHONY: demo test coverage check fuzz bench notebooks constraints clean

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
	$(BIN)/python -m pytest --noconftest tests/test_floors.py tests/test_structure.py
	$(BIN)/python tests/structure.py

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

# The versions that are installed become those that everybody installs; to move to newer ones:
# make clean, make test CONSTRAINTS=, make constraints.
constraints: $(VENV)/.dev
	sed -n '/^#/p' .ci/constraints.txt > $(VENV)/constraints.txt
	$(BIN)/pip freeze --exclude-editable | grep -vE '^(nvidia|cuda)-|^triton==' | sed 's/+.*//' >> $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt .ci/constraints.txt

clean:
	rm -rf $(VENV) build demo *.egg-info

# pip compiles with one processor, this with all; a few files of others are no Python 3.
PIN = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Other packages are of other versions on torch's index; those of this kit come afterwards.
TORCH = $(if $(CONSTRAINTS),$(shell grep -E '^torch(vision)?==' $(CONSTRAINTS)),torch torchvision)
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --no-compile $(TORCH) --index-url $(TORCH_INDEX))
	touch $@

$(VENV)/.demo: pyproject.toml $(CONSTRAINTS) | $(VENV)/.torch
	$(BIN)/pip install --quiet --no-compile --editable ".[demo]" $(PIN)
	$(COMPILE)
	touch $@

$(VENV)/.dev: pyproject.toml $(CONSTRAINTS) | $(VENV)/.torch
	$(BIN)/pip install --quiet --no-compile --editable ".[demo,dev]" $(PIN)
	$(COMPILE)
	touch $@ $(VENV)/.demo
