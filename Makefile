# Everything runs in .venv, made by the first target that needs it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test coverage test-faults test-slow lint format docs

install: .venv/installed

.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

quickstart: install
	rm -rf models/digits-vae searches/quickstart exports/quickstart
	$(BIN)/ftae train search_spaces/pretrain_digits.yaml --out models/digits-vae
	$(BIN)/ftae validate search_spaces/quickstart.yaml
	$(BIN)/ftae search search_spaces/quickstart.yaml
	$(BIN)/ftae show quickstart
	$(BIN)/ftae export quickstart

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Three on two cores: searches wait for much of their time.
test: lint
	$(BIN)/pytest --numprocesses 3 --dist loadfile

# Takes half as long again as the tests alone.
coverage: install
	$(BIN)/pytest --numprocesses 2 --dist loadfile --cov --cov-report=term

# One of each fault of the table in docs/deciding.md, and the searches of several workers.
test-faults: install
	$(BIN)/pytest -m 'faults and not slow'

test-slow: install
	$(BIN)/pytest -m slow

# The documentation site, in site/. Every warning is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
