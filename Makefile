PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean

demo: .venv/installed  ## train on the embedded data set for three minutes, then draw
	$(BIN)/draw train demo --out demo/run
	$(BIN)/draw sample demo/run --out demo/samples.png
	$(BIN)/draw sample demo/run -n 12 --seed 1 --animate demo/drawing.gif
	$(BIN)/draw reconstruct demo/run --out demo/reconstructions.png
	$(BIN)/draw curve demo/run --out demo/curve.png
	$(BIN)/draw evaluate demo/run --samples 5

test: .venv/tested  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/tested: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,web]'
	touch $@

clean:
	rm -rf .venv demo
