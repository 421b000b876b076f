.PHONY: setup demo check test audit clean
PYTHON := .venv/bin/python

setup:
	@bash tools/setup.sh

demo: setup
	@bash tools/demo.sh

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m pytest -n 2 --dist loadfile tests/unit tests/test_house.py

test: setup
	@bash tests/devcluster/install.sh
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	$(PYTHON) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations=12 tests

audit: setup
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -e '.[audit]'
	$(PYTHON) tools/audit.py

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
