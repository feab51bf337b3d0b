"""Every command and snippet of the documentation runs, or says why it does not.

A fenced block of bash, Python or YAML is run, unless the line before it is ``<!-- not run: REASON -->``. Search
files are validated, and a part of one is laid over the file of docs/search-file.md; Python is executed; commands of
``ftae`` run in a folder where the quickstart has run with small budgets. Commands that are not run are parsed.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from ftae.cli import main as cli
from ftae.specs.files import load_production, load_search

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(ROOT.glob("docs/*.md"))]

# What the folder has that snippets run in: the commands of the quickstart, which no snippet repeats.
QUICKSTART = (
    "ftae train search_spaces/pretrain_digits.yaml --out models/digits-vae",
    "ftae validate search_spaces/quickstart.yaml",
    "ftae search search_spaces/quickstart.yaml",
    "ftae export quickstart",
)
SMALL = {r"max_steps: \d+": "max_steps: 12", r"num_evals: \d+": "num_evals: 2", r"num_trials: \d+": "num_trials: 2"}

FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def commands(self) -> list[str]:
        """One for each line, without its comment."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.join(shlex.split(line, comments=True)))]


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("text"))
        yield Block(page, line, found["language"], found["text"], found["reason"])


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def chosen(language: str, *, run: bool = True) -> list[Any]:
    found = [block for block in BLOCKS if block.language == language and (block.reason is None) == run]
    return [pytest.param(block, id=f"{block.page.name}:{block.line}") for block in found]


def commands_of(group: Any) -> dict[str, Any]:
    found: dict[str, Any] = group.commands
    return found


COMMANDS = commands_of(typer.main.get_command(cli.app))


def test_there_are_snippets_of_every_kind() -> None:
    assert all(chosen(language) for language in ("bash", "python", "yaml"))
    fences = sum(page.read_text(encoding="utf-8").count("\n```") for page in PAGES)
    assert fences == 2 * len(BLOCKS), "a fence that the pattern does not find"


def test_every_block_names_its_language() -> None:
    known = {"bash", "python", "yaml", "text", "diff"}
    assert [f"{b.page.name}:{b.line}" for b in BLOCKS if b.language not in known] == []


# ------------------------------------------------------------------------------------------------------------ YAML


@pytest.fixture(scope="module")
def whole_file() -> dict[str, Any]:
    """The search file that docs/search-file.md begins with."""
    first = next(b for b in BLOCKS if b.page.name == "search-file.md" and b.language == "yaml")
    found: dict[str, Any] = yaml.safe_load(first.text)
    return found


@pytest.mark.parametrize("block", chosen("yaml"))
def test_a_file_is_valid(block: Block, whole_file: dict[str, Any], tmp_path: Path) -> None:
    part = yaml.safe_load(block.text)
    file = tmp_path / "file.yaml"
    if "name" in part:
        file.write_text(block.text, encoding="utf-8")
        (load_search if "search_space" in part else load_production)(file)
        return
    run = whole_file["finetune"] | part.get("finetune", {})
    file.write_text(yaml.safe_dump(whole_file | part | {"finetune": run}), encoding="utf-8")
    load_search(file)


# ---------------------------------------------------------------------------------------------- commands and Python

Run = Callable[[str], None]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """A folder in which the quickstart has run, with small budgets; and two images."""
    folder = tmp_path_factory.mktemp("quickstart")
    (folder / "search_spaces").mkdir()
    for path in (ROOT / "search_spaces").glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        for pattern, small in SMALL.items():
            text = re.sub(pattern, small, text)
        (folder / "search_spaces" / path.name).write_text(text, encoding="utf-8")
    (folder / "pictures").mkdir()
    for name, digit in zip("AB", load_digits().images, strict=False):
        Image.fromarray((digit * 15).astype("uint8")).resize((16, 16)).save(folder / "pictures" / f"{name}.png")
    with chdir(folder):
        for command in QUICKSTART:
            run(command)
    return folder


@pytest.fixture
def workspace(quickstart: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That folder is the current one: snippets share it, and none writes where another has written."""
    monkeypatch.chdir(quickstart)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "FTAE_DEBUG"):
        monkeypatch.delenv(name, raising=False)


def run(command: str) -> None:
    """Run one command of ``ftae`` in this process; it must end well."""
    before, sys.argv = sys.argv, shlex.split(command)
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        sys.argv = before
    assert not end.value.code, command


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("block", chosen("python"))
def test_python_runs(block: Block) -> None:
    code = compile("\n" * block.line + block.text, str(block.page), "exec")
    exec(code, {"__name__": "snippet"})


@pytest.mark.usefixtures("workspace")
@pytest.mark.parametrize("block", chosen("bash"))
def test_commands_run(block: Block) -> None:
    for command in block.commands:
        if command in QUICKSTART:
            continue
        if command.startswith("make "):
            check_command(command)
            continue
        assert command.startswith("ftae "), f"{command}: cannot be run here, say so with <!-- not run: REASON -->"
        run(command)


@pytest.mark.parametrize("block", chosen("bash", run=False))
def test_commands_that_are_not_run_exist(block: Block) -> None:
    before = dict(os.environ)
    try:
        for command in block.commands:
            check_command(command)
    finally:  # an option may set a variable for the workers of a search
        os.environ.clear()
        os.environ.update(before)


def check_command(command: str) -> None:
    """Hold a command against what there is: options and arguments of ``ftae``, targets of make, modules."""
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "ftae":
        made = COMMANDS[words[1]].make_context(words[1], words[2:])
        assert made.command.name == words[1]
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert [word for word in words[1:] if not re.search(rf"^{word}:", makefile, re.MULTILINE)] == []
    elif words[:2] == ["python", "-m"]:
        module = ROOT / words[2].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file()
