# make demo | test | check — each creates .venv and installs first. The rest is for those who change something.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow check format protos bench bench-quick deploy-test clean

demo: $(INSTALLED)
	$(BIN)/python -m benchmarks.demo --out runs/demo

# Two files at a time: that many cores are everywhere, and a server under test takes what it gets.
test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m "slow and not gpu"

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m protos.generate --check

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED)
	$(BIN)/python -m protos.generate

# All that is tested of deploy/. What needs a program of Debian's skips and names it: prometheus, buildah, podman, ….
deploy-test: $(INSTALLED) .venv/checkov/.installed
	$(BIN)/python -m pytest tests/deploy -m "not gpu"

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.quality --seeds 10 --out runs/quality
	$(BIN)/python -m benchmarks.training --out runs/training

# Answers of every load, in under a minute: no figure of it counts.
bench-quick: $(INSTALLED)
	$(BIN)/python -m benchmarks.serve --quick

clean:
	rm -rf .venv runs

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and "Thalweg needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[train,serve,dev]'
	@touch $@

# Apart: it wants older versions of what others need newer.
.venv/checkov/.installed: $(INSTALLED)
	$(PYTHON) -m venv .venv/checkov
	.venv/checkov/bin/python -m pip install --quiet checkov
	@touch $@
