# `make demo` and `make test` set everything up by themselves: Python 3.11+, a network for pip, nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
OUT ?= build/demo
# Two cores train and test fastest when each process keeps to its own.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test faults screenshots check format protos clean

demo: $(VENV)/.installed
	$(RUN)/ringfence demo --scenario heart --out $(OUT)

test: $(VENV)/.installed
	$(RUN)/python -m pytest -n 2

# Kills, cuts, fills and skews a real deployment, for the better part of an hour, and prints docs/faults.md's matrix.
# The faults of link, disk and clock need root, iproute2 and a C compiler, and say so where they are left out.
faults: $(VENV)/.installed
	$(RUN)/python -m pytest -n 0 -m faults tests/deployment

# Pictures of every page of the control plane, light and dark, wide and narrow, into build/screenshots; those that the
# documentation shows, into docs/pictures.
screenshots: $(VENV)/.installed
	$(RUN)/python tests/control/make_screenshots.py build/screenshots

check: $(VENV)/.installed
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports
	$(RUN)/python -m pytest -n 2

format: $(VENV)/.installed
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

protos: $(VENV)/.installed
	$(RUN)/python -m grpc_tools.protoc -Iclients --python_out=clients --pyi_out=clients --grpc_python_out=clients \
		clients/ringfence_client/holder_agent.proto

COMPILED := $(wildcard clients/build_kernel.py clients/ringfence_client/*.[ch])

$(VENV)/.installed: pyproject.toml constraints.txt $(COMPILED)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Ringfence needs Python 3.11 or newer; try: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist
