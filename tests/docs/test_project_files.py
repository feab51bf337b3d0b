"""The files around the code: workflows, templates, hooks, citation and changelog."""

import re
import tomllib
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftae import __version__

ROOT = Path(__file__).parents[2]
GITHUB = sorted(path for path in (ROOT / ".github").rglob("*.y*ml"))
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*GITHUB, ROOT / ".pre-commit-config.yaml"], ids=lambda path: path.name)
def test_a_file_is_yaml(path: Path) -> None:
    assert isinstance(read(path), dict)


def commands(job: dict[str, Any]) -> Iterator[str]:
    """The commands of a job, for each combination of its matrix."""
    matrix = job.get("strategy", {}).get("matrix", {})
    for values in product(*matrix.values()):
        for step in job["steps"]:
            text = step.get("run", "")
            for name, value in zip(matrix, values, strict=True):
                text = text.replace(f"${{{{ matrix.{name} }}}}", value)
            yield from text.splitlines()


def test_workflows_call_targets_of_the_makefile() -> None:
    called = set()
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in read(path)["jobs"].values():
            called |= {word for line in commands(job) for word in re.findall(r"\bmake ([\w-]+)", line)}
    assert called <= TARGETS
    assert called >= {"lint", "test", "docs", "test-faults", "test-slow", "quickstart"}


def test_workflows_run_every_python_from_the_oldest_that_is_allowed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    oldest = project["requires-python"].removeprefix(">=")
    jobs = read(ROOT / ".github/workflows/ci.yml")["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == [oldest, "3.12", "3.13"]


def test_steps_are_complete() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        for job in read(path)["jobs"].values():
            assert job["steps"][0]["uses"].startswith("actions/checkout@")
            assert all(("uses" in step) != ("run" in step) for step in job["steps"])


def test_issue_forms_ask_something() -> None:
    forms = [path for path in GITHUB if path.parent.name == "ISSUE_TEMPLATE" and path.name != "config.yml"]
    assert forms
    for form in map(read, forms):
        assert {"name", "description", "body"} <= form.keys()
        assert all(part["attributes"]["label"] for part in form["body"])


def test_the_version_is_the_same_everywhere() -> None:
    assert read(ROOT / "CITATION.cff")["version"] == __version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)[0] == __version__


def test_the_makefile_declares_its_targets() -> None:
    phony = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(phony[0].split()) == TARGETS
