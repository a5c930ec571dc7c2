PYTHON ?= python
LATEST ?= python3.12
DEVICE ?= cpu

.PHONY: check check-all check-gpu lint test smoke bench torture check-latest

check: lint test  ## what CI runs

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

test:
	$(PYTHON) -m pytest -q -n 2 --dist worksteal --durations=40

check-all: lint  ## the tests that are marked slow, too
	$(PYTHON) -m pytest -q -n 2 --dist worksteal --durations=40 -m "slow or not slow"

check-gpu:  ## what GPUs are given, in programs compiled without one: needs the extra gpu-compile, takes minutes
	$(PYTHON) -m pytest -q -n 0 -m "slow or not slow" tests/test_gpu_compiled.py

smoke:  ## two minutes of training without any data
	$(PYTHON) -m rtseg_jax.main --config=configs/eacnet.py:streets --workdir=/tmp/rtseg_smoke

bench:  ## every network against PyTorch and onnxruntime, on this device: hours on a CPU; may be interrupted and resumed
	$(PYTHON) -m rtseg_jax bench --sizes=512x1024,360x480 --mode=throughput,e2e,train --resume --output=benchmarks/$(DEVICE).jsonl

torture:  ## kills runs at random moments and damages what they need; tells what was lost: takes long on two CPU cores
	$(PYTHON) -m tests.torture --faults > benchmarks/reliability.md.new
	mv benchmarks/reliability.md.new benchmarks/reliability.md

check-latest:  ## the suite on another interpreter, with the newest jax that it takes
	$(LATEST) -m venv .venv-latest
	.venv-latest/bin/pip install -q -e ".[test]"
	.venv-latest/bin/python -m pytest -q -n 2 --dist worksteal
