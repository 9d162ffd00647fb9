# `make demo` runs the main job on real images, `make test` the tests; both set up all they need in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test slow soak oracles lint types check docs wheel bench clean

demo: $(STAMP)
	$(BIN)/python demo/demo.py
	$(BIN)/python demo/weights.py

# In as many processes as there are cores, 4 at most; WORKERS=0 runs them in one.
WORKERS ?= auto
test: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal -m "not slow and not image and not gpu and not triton and not soak and not alone and not oracle"
	$(BIN)/python -m pytest -m "alone and not slow"

slow: $(STAMP)
	$(BIN)/python -m pytest -m "(slow or image or gpu or triton) and not soak"

# Half an hour of mixed traffic against one server; SOAK_MINUTES says otherwise.
soak: $(STAMP)
	$(BIN)/python -m pytest -m soak -s tests/soak

# The libraries that the tests marked oracle compare with, in an environment of their own that takes torch from .venv.
ORACLES := build/oracles
oracles: $(STAMP)
	$(BIN)/python -m venv $(ORACLES)
	$(BIN)/python -c 'import sysconfig as s; print(s.get_path("purelib"))' > $(ORACLES)/project.pth
	mv $(ORACLES)/project.pth $$($(ORACLES)/bin/python -c 'import sysconfig as s; print(s.get_path("purelib"))')
	$(ORACLES)/bin/python -m pip install -q --no-deps -r tests/importing/oracles.txt
	$(BIN)/python -m pytest -s -m oracle tests/importing tests/training

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types docs test

# The documentation as a static site, build/docs/index.html; a broken link inside it is an error.
docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html -c docs . build/docs

# Every figure that the documentation quotes.
bench: $(STAMP)
	$(BIN)/python benchmarks/ranking.py --json benchmarks/results/ranking.json --figure docs/figures/ranking.svg
	$(BIN)/python benchmarks/selection_time.py --json benchmarks/results/selection_time.json
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/sampling.py --json benchmarks/results/sampling.json
	$(BIN)/python benchmarks/export_time.py --json benchmarks/results/export_time.json
	$(BIN)/python benchmarks/evidence.py --json benchmarks/results/evidence.json
	$(BIN)/python benchmarks/precision.py
	$(BIN)/python benchmarks/golden_gate.py
	$(BIN)/python benchmarks/cpu_runtimes.py
	$(BIN)/python benchmarks/cpu_runtimes_page.py
	$(BIN)/python benchmarks/precision_page.py
	$(BIN)/python benchmarks/design_spaces.py
	$(BIN)/python benchmarks/transfer_page.py
	$(BIN)/python benchmarks/training_page.py
	$(BIN)/python benchmarks/input_pipeline_page.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/serving_peers.py
	$(BIN)/python benchmarks/serving_ablation.py --rounds 12
	$(BIN)/python benchmarks/serving_ablation.py --rounds 12 --noop
	$(BIN)/python -m pip install -q --target build/servers granian hypercorn
	PYTHONPATH=build/servers $(BIN)/python benchmarks/serving_http_servers.py
	$(BIN)/python benchmarks/serving_page.py
	$(BIN)/python benchmarks/measurements.py

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "Python 3.11 to 3.14 is needed, $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { [ "$$(id -u)" = 0 ] && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv; } || \
	  { echo "$(PYTHON) cannot make environments: sudo apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all,cpu]' --group dev --group docs
	@touch $@

clean:
	rm -rf $(VENV) build dist demo-run .pytest_cache .mypy_cache .ruff_cache .hypothesis
