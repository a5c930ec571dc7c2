PYTHON ?= python
LATEST ?= python3.12

.PHONY: check lint test smoke bench check-latest

check: lint test  ## what CI runs

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test:
	$(PYTHON) -m pytest -q

smoke:  ## two minutes of training without any data
	$(PYTHON) -m rtseg_jax.main --config=configs/eacnet.py:streets --workdir=/tmp/rtseg_smoke

bench:  ## a training step against PyTorch, on this device
	$(PYTHON) benchmarks/train_step.py --output benchmarks/train_step.jsonl

check-latest:  ## the suite on another interpreter, with the newest jax that it takes
	$(LATEST) -m venv .venv-latest
	.venv-latest/bin/pip install -q -e ".[test]"
	.venv-latest/bin/python -m pytest -q
