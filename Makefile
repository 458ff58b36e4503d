# Two commands do everything: `make demo` and `make test`. Both set up what they need in .venv.
# x86 without a GPU: `make test TORCH_INDEX=https://download.pytorch.org/whl/cpu` fetches 200 MB instead of gigabytes.

PYTHON ?= python3
VENV := .venv
# Debian keeps mosquitto where users do not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TORCH_INDEX ?=
ARGS ?=
PYTEST_ARGS ?=
SEEDS ?= 0:5000
JOBS ?= 2
# `make test` runs these pages; to read them as a documentation check takes minutes.
SLOW_PAGES := tests/docs/test_bring_your_own_model.py tests/docs/test_exporter_tables.py

.PHONY: demo test test-slow images chaos check bench bench-aggregate bench-robust bench-train bench-transfer bench-bytes bench-bytes-quick fuzz clean help

help:
	@echo "make demo [ARGS='--quick --seed 1']   a fleet of 17 agents trains one model over a real broker"
	@echo "make test                             the test suite"
	@echo "make test-slow                        what boots whole systems or needs an engine: root, minutes"
	@echo "make images                           container images of agent, aggregator and broker"
	@echo "make chaos [SEEDS=0:5000]             thousands of fault schedules, each of which its seed replays"
	@echo "make check                            formatting, lint, types, import contracts, documentation"
	@echo "make bench                            the figures of the README, from scripts"
	@echo "make bench-aggregate                  every rule on 100 updates of 1M parameters, against np.add and Flower (PyPI)"
	@echo "make bench-robust                     rules against attackers in the twin: two data sets, thirteen attacks (hours)"
	@echo "make bench-bytes                      codecs: bits and speed on every model; accuracy over bytes in the twin (hours)"
	@echo "make bench-bytes-quick                the same in minutes: is everything in order?"
	@echo "make bench-train                      training steps of every model against torch: time, memory, imports, disk"
	@echo "make fuzz                             3,000,000 damaged inputs for every decoder that a peer can reach"
	@echo "make bench-transfer                   100 MB over small packets and a link that breaks (root)"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml | $(BIN)/python
	@echo "installing the demo into $(VENV) (no torch; about 400 MB)"
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/dev.installed: pyproject.toml | $(BIN)/python
	@echo "installing the workshop and the tests into $(VENV) (with torch)"
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) )torch==2.13.0
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/demo.installed

demo: $(VENV)/demo.installed
	$(BIN)/anabranch demo $(ARGS)

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-slow: $(VENV)/dev.installed
	$(BIN)/python -m pytest -m slow --timeout 1800 $(PYTEST_ARGS)

images:
	for name in agent aggregator mosquitto; do \
	  docker build --file deploy/docker/$$name.Dockerfile --tag anabranch-$$name $(ARGS) . || exit 1; done

chaos: $(VENV)/dev.installed
	@echo "seeds $(SEEDS) of benchmarks/experiments/chaos.toml"
	$(BIN)/anabranch simulate benchmarks/experiments/chaos.toml --seeds $(SEEDS) --jobs $(JOBS) --check

check: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -p no:cacheprovider tests/docs $(SLOW_PAGES:%=--ignore=%)

bench: $(VENV)/dev.installed
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/footprint.py
	$(BIN)/python benchmarks/fan_demo.py --seeds 5
	$(BIN)/python benchmarks/twin_demo.py --seeds 5

bench-aggregate: $(VENV)/dev.installed
	$(BIN)/python benchmarks/bench_aggregate.py $(ARGS)

bench-robust: $(VENV)/dev.installed
	$(BIN)/python benchmarks/bench_bytes.py --bundles
	$(BIN)/python benchmarks/bench_robust.py $(ARGS)

bench-train: $(VENV)/dev.installed
	$(BIN)/python benchmarks/bench_train.py $(ARGS)

bench-transfer: $(VENV)/dev.installed
	$(BIN)/python benchmarks/transfer.py $(ARGS)

bench-bytes: $(VENV)/dev.installed
	$(BIN)/python benchmarks/bench_bytes.py $(ARGS)

bench-bytes-quick: $(VENV)/dev.installed
	$(BIN)/python benchmarks/bench_bytes.py --quick $(ARGS)

fuzz: $(VENV)/dev.installed
	$(BIN)/python benchmarks/fuzz_decoders.py --inputs 3000000 $(ARGS)

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
