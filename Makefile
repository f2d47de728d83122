# Needs only python3, pip and the package registries; everything goes into .venv.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
# What one process has compiled, however small, the others read.
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: demo test test-full lint bench notebooks docs build smoke-oldest smoke-newest audit clean

# One stamp per extra, so that each command installs no more than it needs.
.venv/bin/python:
	$(PYTHON) -m venv .venv
.venv/.%: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$*]'
	touch $@

# The main job: a recurrent network learns MNIST row by row with aSNAQ, adaQN, Adagrad and Adam (twice).
demo: .venv/.examples
	$(BIN)/python -m benchmarks run mnist-rows --quick --out demo

# CI's tests; `make test-full` adds those marked slow, and compiles the listings as users compile
# them. What is compiled quickly (see tests/conftest.py) leaves out what that compiler gets wrong.
QUICKLY := NAQOPT_QUICK_COMPILATION=1 $(PYTEST)

BY_DEFAULT_COMPILER := $(shell grep -l default_compiler tests/test_*.py)

test: .venv/.examples .venv/.test
	$(QUICKLY) -m "not slow and not default_compiler"
	$(PYTEST) -m "not slow and default_compiler" $(BY_DEFAULT_COMPILER)
test-full: .venv/.examples .venv/.test .venv/.small-models
	$(QUICKLY) -m "not default_compiler" --ignore=tests/test_adaptive.py --ignore-glob="*_listings.py"
	$(PYTEST) -m "default_compiler" $(BY_DEFAULT_COMPILER)
	$(PYTEST) -m "not default_compiler" tests/test_adaptive.py tests/*_listings.py

lint: .venv/.examples .venv/.test .venv/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.examples
	$(BIN)/python -m benchmarks speed --quick
	$(BIN)/python -m benchmarks run counting

notebooks: .venv/.examples .venv/.notebooks
	NAQOPT_QUICK=1 $(BIN)/python -m nbconvert --to notebook --execute --output-dir .cache/notebooks notebooks/*.ipynb

# The site in docs/_build/html: warnings are errors, internal links among them, and a public name
# without a page. Notebooks are executed in their quick form, once until they change. The guides'
# code is run, and what it prints compared, on eight simulated devices.
SPHINX := $(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees
docs: .venv/.examples .venv/.notebooks .venv/.docs
	$(SPHINX) -b html docs docs/_build/html
	XLA_FLAGS=--xla_force_host_platform_device_count=8 $(SPHINX) -b doctest docs docs/_build/doctest

# Wheel and source distribution in dist/, the wheel made of the source distribution.
build: .venv/.build
	rm -rf dist
	$(BIN)/python -m build

# Both, each installed in an empty environment, with the oldest JAX and Optax that pyproject.toml
# allows (its `>=` read as `==`) and with the newest, pass a smoke test that sees nothing of the
# checkout. The newest jaxlib that a JAX takes is its own version.
OLDEST := $(shell sed -n 's/^dependencies = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",' | sed 's/>=/==/g')
smoke-oldest: PINS := $(OLDEST)
smoke-oldest smoke-newest: build
	@test "$@" = smoke-newest || test -n "$(PINS)"
	for made in dist/*.whl dist/*.tar.gz; do \
	  $(PYTHON) -m venv --clear .venv/$@ && \
	  .venv/$@/bin/python -m pip install --quiet --disable-pip-version-check $$made $(PINS) && \
	  .venv/$@/bin/python -I tests/installed_package.py || exit 1; \
	done

# The oldest versions that pyproject.toml allows, against published advisories. Fails where there
# are some, and where no service of advisories could be asked, saying which.
audit: .venv/.audit
	$(BIN)/python tests/audit_minima.py

clean:
	rm -rf .venv .cache demo build dist docs/_build docs/api docs/notebooks docs/results/studies .pytest_cache .mypy_cache .ruff_cache .hypothesis
