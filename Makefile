# make demo   environment, package, full pipeline on the bundled sample tile
# make test   environment, all tests (notebooks included)
# make docs   environment, the documentation site in _proc/_docs
# make lint   environment, ruff and the type checker's ratchet
# make browser  Chromium for the tests in a browser, where apt and root are at hand (without it they are skipped)
# All may be repeated; what is already there is not made again.

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1
export MPLBACKEND ?= agg
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PYTHON ?= python3

.PHONY: help demo test test-slow docs lint browser notebooks clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

.venv/.installed: setup.py settings.ini
	@echo "Making the environment in .venv (once)"
	@$(PYTHON) -c 'import sys; sys.exit("tract7dt needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q uv
	.venv/bin/uv pip install -q --python .venv/bin/python -e '.[dev]' || .venv/bin/pip install -q -e '.[dev]'
	@touch $@

demo: .venv/.installed
	@echo "Running the whole pipeline on sample_data (six simulated bands); products go to sample_data/work"
	tract7dt run --config sample_data/config.yaml
	@echo
	@echo "Look at sample_data/work/outputs/*/patch_overview.png (data, model, residual), sample_data/work/ZP/*.png and"
	@echo "sample_data/work/output_catalog.csv; compare with sample_data/truth.ecsv. Next: .venv/bin/jupyter lab nbs/tutorials/01_first_run.ipynb"

test: .venv/.installed
	@echo "Running all tests: package, notebooks, agreement of notebooks and modules"
	python -m pytest -n 2 --dist loadgroup

test-slow: .venv/.installed
	python -m pytest -n 2 --dist loadgroup -m 'slow or not slow'

docs: .venv/.installed
	python tools/docs.py --check

lint: .venv/.installed
	ruff check
	ruff format --check -q
	python tools/type_check.py

browser:
	@tools/browser.sh

notebooks: .venv/.installed
	python tools/notebooks.py

clean:
	rm -rf .venv _proc sample_data/work build dist *.egg-info
