# `make demo` runs the main job, `make test` the tests; both set up .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-ray lint bench results fuzz endurance clean

demo: .venv/ready
	$(BIN)/apq-deploy search --latency-ms 0.05 --run apq-run
	$(BIN)/apq-deploy export apq-run/model.onnx --run apq-run
	$(BIN)/apq-deploy compile apq-run/model.onnx -o apq-run/model.so --run apq-run
	@echo
	$(BIN)/apq-deploy report --run apq-run

test: .venv/ready
	$(BIN)/python -m pytest

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: .venv/ready
	for script in hwmodels search calibration runtime; do $(BIN)/python -m benchmarks.$$script; done

# The paper's claims, measured: docs/results.md. A stopped run goes on. DATA is a folder with FashionMNIST/raw.
DATA ?= data
results: .venv/ready
	$(BIN)/python -m benchmarks.paper --data $(DATA)

# The tests of `--ray`, which `make test` skips: Ray is 80 MB.
test-ray: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	$(BIN)/python -m pytest tests/test_ray.py

# The tests' own checks on damaged files and kills, for longer.
MINUTES ?= 10
fuzz: .venv/ready
	PYTHONPATH=. $(BIN)/python tests/fuzzing.py --minutes $(MINUTES)

endurance: .venv/ready
	PYTHONPATH=. $(BIN)/python tests/endurance.py --kills 20

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

.venv/lint: .venv/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lint]'
	touch $@

clean:
	rm -rf .venv apq-run
