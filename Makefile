# make help lists the targets. Everything runs inside .venv, which is made on first use.
PYTHON  ?= python3
PROFILE ?= quick
JOBS    ?= 1
FORMS   := plain,lean,lean channels_last
ifdef REFERENCE
FORMS   := reference,$(FORMS)
endif
# What a user gives may hold quotes, braces, $ and #: the shell takes it from the environment, as it was typed.
override PROFILE   := $(value PROFILE)
override ONLY      := $(value ONLY)
override OUT       := $(value OUT)
override JOBS      := $(value JOBS)
override DATA_DIR  := $(value DATA_DIR)
override REFERENCE := $(value REFERENCE)
export PROFILE ONLY OUT JOBS DATA_DIR REFERENCE
BIN     := .venv/bin
TESTS   := OMP_NUM_THREADS=1 MEDSYNTH_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

.PHONY: help run check test matrix rooms fuzz soak lab student sweep-uda sweep-vae bench bench-gpu full-size clean
.DEFAULT_GOAL := help

help:
	@echo 'make run      execute the notebooks, write an HTML report: PROFILE=quick ONLY=01,02 OUT=DIR JOBS=1 DATA_DIR=DIR'
	@echo 'make lab      open JupyterLab on notebooks/ (copies without solutions: make student, then build/student)'
	@echo 'make check    before a commit: lint, format, types, architecture, fast tests (60 s)'
	@echo 'make test     all tests, then every notebook in profile quick'
	@echo 'make fuzz     100,000 damaged images, series, folders, manifests, archives and names (some hundreds are part of make test)'
	@echo 'make matrix   every lesson on a look-alike of every supported data set: hours (make test runs two sets)'
	@echo 'make soak     kill -9 at 100 random moments of simulation, cache, training and batch run: the same files in the end'
	@echo 'make student  copies of the notebooks without solutions, in build/student'
	@echo 'make sweep-uda  every row of lesson 04 with three seeds and three directions: hours, resumable'
	@echo 'make rooms    write the table of rooms and arrows into CONTRIBUTING.md'
	@echo 'make sweep-vae  the comparisons of lesson 03, longer and with three seeds: hours, resumable'
	@echo 'make bench    step times of simulator and pix2pix; JSON in build/bench (bench-gpu: pix2pix, HA-GAN and memory on a GPU; REFERENCE=DIR)'
	@echo 'make full-size  240x240x155 NIfTI to NIfTI, with DATA_DIR=DIR or simulated; seconds and GiB'
	@echo 'make clean    remove build/ and caches; .venv stays'

# All packages but torch come by their hashes; torch by its version, since its CPU builds carry hashes of their own.
.venv/stamp: pyproject.toml constraints.txt requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4))' || \
	  { echo '$(PYTHON) is older than Python 3.11.4; give a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)'; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

run: .venv/stamp
	@$(BIN)/medsynth run --profile="$$PROFILE" --only="$$ONLY" --jobs="$$JOBS" \
	  $${OUT:+--out="$$OUT"} $${DATA_DIR:+--data-dir="$$DATA_DIR"}

# What to run before every commit: 60 s on two slow cores.
check: .venv/stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS) -m 'not slow and not gpu and not browser' tests

# Two workers with one thread each, for the tests and then for the notebooks.
test: .venv/stamp
	$(TESTS) tests
	MEDSYNTH_PROFILE=quick MEDSYNTH_HEADLESS=1 MEDSYNTH_OUT_DIR="$$PWD/build/nbval" \
	  $(TESTS) -p no:cacheprovider --dist loadfile --nbval-lax --nbval-cell-timeout=300 notebooks
	$(BIN)/medsynth compare build/nbval
	@echo 'tests passed; results of the notebooks: build/nbval'

fuzz: .venv/stamp
	MEDSYNTH_FUZZ=thorough $(BIN)/python -m pytest --timeout=10000 -s tests/test_fuzz.py

matrix: .venv/stamp
	MEDSYNTH_MATRIX=full $(BIN)/python -m pytest --timeout=7200 tests/course/test_notebook_cells.py

soak: .venv/stamp
	MEDSYNTH_SOAK=1 $(BIN)/python -m pytest -s tests/test_faults.py -k random_moments

lab: .venv/stamp
	$(BIN)/jupyter lab --ServerApp.root_dir="$$PWD" --LabApp.default_url=/lab/tree/notebooks

student: .venv/stamp
	@$(BIN)/medsynth student --out build/student

sweep-uda: .venv/stamp
	$(BIN)/medsynth sweep adaptation --jobs 2

sweep-vae: .venv/stamp
	$(BIN)/medsynth sweep slice-vae --jobs 2

bench: .venv/stamp
	@mkdir -p build/bench
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done
	@echo 'benchmarks: build/bench'

bench-gpu: .venv/stamp
	$(BIN)/python benchmarks/bench_pix2pix.py --device cuda
	for size in 128 256; do for precision in fp32 tf32 bf16; do \
	  $(BIN)/python benchmarks/hagan_step.py --size $$size --device cuda --precision $$precision --rounds 5 --memory 1 --profile 1 \
	    $${REFERENCE:+--reference="$$REFERENCE"} --forms '$(FORMS)' || exit 1; done; done
	$(BIN)/python benchmarks/memory_gpu.py
	$(BIN)/python benchmarks/hagan_quality.py --device cuda

full-size: .venv/stamp
	$(BIN)/python benchmarks/full_size.py

# Writes the table of rooms and arrows into CONTRIBUTING.md.
rooms: .venv/stamp
	$(BIN)/python tests/test_architecture.py --write

clean:
	rm -rf build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
	@echo 'removed: build and caches'
