"""The shipped files are the front door: each loads, and what its header says to type exists."""

import re
from pathlib import Path

import pytest
import typer

from ftae.cli.main import app
from ftae.engine.models.families import build_model
from ftae.search.plan import plan
from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.files import load_any
from ftae.specs.search.lint import warnings

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "search_spaces").glob("*.yaml"))
COMMANDS = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def header(path: Path) -> list[str]:
    lines = path.read_text().splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]


def test_the_model_that_a_file_starts_from_is_made_by_another() -> None:
    made = {
        out for path in FILES for out in re.findall(r"^#   ftae train \S+ --out (\S+)", path.read_text(), re.MULTILINE)
    }
    assert any(isinstance(load_any(path), ProductionSpec) for path in FILES)
    for path in FILES:
        spec = load_any(path)
        model = spec.finetune.model.pretrained
        if isinstance(spec, SearchSpec) and model is not None and model.startswith("models/"):
            assert f"--out {model}" in "\n".join(header(path))
            assert model in made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_has_no_doubtful_settings(path: Path) -> None:
    assert warnings(load_any(path)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_header_says_what_to_type_and_what_to_change(path: Path) -> None:
    text = "\n".join(header(path))
    typed = re.findall(r"^#   ftae (\S+) (\S+)", text, re.MULTILINE)
    assert any(argument == f"search_spaces/{path.name}" for _, argument in typed)
    spec = load_any(path)
    for command, argument in typed:
        assert command in COMMANDS
        if argument.endswith(".yaml"):
            assert (ROOT / argument).is_file()
        elif command == "convert":
            assert argument.endswith((".pkl", ".pth"))  # a file of another program
        else:
            assert argument == spec.name  # a search that the file makes
    for target in re.findall(r"^#   make (\S+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "What to change: " in text


def test_the_makefile_runs_what_the_quickstart_says() -> None:
    recipe = re.findall(r"\$\(BIN\)/ftae (.+)", (ROOT / "Makefile").read_text())
    said = [line.split("ftae ", 1)[1] for line in header(ROOT / "search_spaces/quickstart.yaml") if "   ftae " in line]
    assert said
    assert [line for line in recipe if line in said] == said
    assert {line.split()[0] for line in recipe} <= COMMANDS


def test_the_quickstart_continues_the_training_run() -> None:
    trained, tuned = (load_any(ROOT / "search_spaces" / f"{name}.yaml") for name in ("pretrain_digits", "quickstart"))
    said = (ROOT / "search_spaces/pretrain_digits.yaml").read_text()
    assert f"--out {tuned.finetune.model.pretrained}" in said
    assert trained.finetune.data.resolution == tuned.finetune.data.resolution
    stages = build_model(trained.finetune, None).stages
    text = (ROOT / "search_spaces/quickstart.yaml").read_text()
    assert re.findall(r"freeze_depth: 0 +# of (\d+) stages", text) == [str(len(stages))]


@pytest.mark.parametrize("name", ["latent_classifier", "pretrain_digits", "pretrain_cvae", "hierarchical_vae"])
def test_what_needs_nothing_else_has_a_plan(name: str) -> None:
    assert any(line.startswith("model ") for line in plan(load_any(ROOT / "search_spaces" / f"{name}.yaml")))


def test_the_quickstart_has_a_plan_for_a_model_from_scratch() -> None:
    path = ROOT / "search_spaces/quickstart.yaml"
    lines = plan(load_any(path, ["model.pretrained=null"]))
    assert any(line.startswith("stopping     at steps 33, 67, 100, 133, 167, 200, 233, 267 of 300") for line in lines)
