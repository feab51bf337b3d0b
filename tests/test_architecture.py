"""The layers hold, and the command line starts without the heavy packages."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ftae"

# From the ground up: a package imports those below it alone, never one beside it.
LAYERS = [
    {"errors", "wording"},
    {"user_code"},
    {"specs.reading"},
    {"specs.finetune"},
    {"specs.search"},
    {"specs.files", "specs"},
    {"storage"},
    {"engine.run_folder", "engine.process"},
    {"engine.models", "engine.data"},
    {"engine.frozen_cache"},
    {"engine.objectives"},
    {"engine.tasks"},
    {"engine.training"},
    {"engine.sizing"},
    {"tracking"},
    {"results"},
    {"cluster", "search.ray"},
    {"search"},
    {"inference", "reporting", "drafting"},
    {"api"},
    {"cli"},
    {"__main__"},
]
MOST_IN_FOLDER = 14  # modules, beside the __init__
MOST_IN_ALL = 266
# Who may import what from outside; any other module must not.
ONLY_IMPORTERS = {
    "ray": {"search.ray", "cluster"},
    "optuna": {"search"},
    "mlflow": {"tracking"},
    "plotly": {"reporting"},
    "typer": {"cli"},
    "torch": {"engine", "search.ray", "inference"},
    "diffusers": {"engine.models", "engine.process"},
}


def part_of(name: str) -> str:
    """The package of ``LAYERS`` that a dotted name below ftae belongs to: the longest that fits."""
    parts = name.split(".")
    ends = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next(part for part in ends if any(part in layer for layer in LAYERS))


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def is_package(name: str) -> bool:
    return name.split(".")[0] == "ftae" and (ROOT / name.replace(".", "/")).is_dir()


def imports_of(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            # ``from ftae.storage import journal`` names the module journal, not the package.
            if is_package(node.module):
                names |= {f"{node.module}.{a.name}" for a in node.names}
            else:
                names.add(node.module)
    return names


def modules() -> list[Path]:
    found = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
    assert len(found) > 25
    return found


def test_every_module_has_a_layer() -> None:
    without = [
        name for name in map(dotted, modules()) if not any(name.startswith(p) for layer in LAYERS for p in layer)
    ]
    assert set(without) <= {"engine"}


def ftae_imports(path: Path) -> set[str]:
    return {name.removeprefix("ftae.") for name in imports_of(path) if name.startswith("ftae.")} - {"__version__"}


def test_imports_point_down_and_never_to_siblings() -> None:
    layer_of = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    wrong = []
    for path in modules():
        if dotted(path) == "engine":
            continue
        here = part_of(dotted(path))
        for name in ftae_imports(path):
            there = part_of(name)
            if there != here and layer_of[there] >= layer_of[here]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_no_cycles_inside_a_package() -> None:
    for package in sorted({path.parent for path in modules()} - {PACKAGE}):
        prefix = ".".join(package.relative_to(PACKAGE).parts)
        graph = {dotted(p): ftae_imports(p) for p in package.glob("*.py") if p.stem != "__init__"}
        remaining = dict(graph)
        while leaves := [m for m, needs in remaining.items() if not needs & remaining.keys()]:
            for module in leaves:
                del remaining[module]
        assert remaining == {}, f"{prefix}: {sorted(remaining)} import each other in a circle"


def test_no_folder_is_crowded() -> None:
    count = Counter(path.parent for path in modules() if path.stem != "__init__")
    assert {str(folder): number for folder, number in count.items() if number > MOST_IN_FOLDER} == {}
    assert count.total() <= MOST_IN_ALL
    assert not [path for path in modules() if "utils" in path.stem]


def test_heavy_packages_have_one_importer() -> None:
    wrong = []
    for path in modules():
        for name in imports_of(path):
            allowed = ONLY_IMPORTERS.get(name.split(".")[0])
            here = dotted(path)
            if allowed is not None and not any(here == part or here.startswith(f"{part}.") for part in allowed):
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert wrong == []


# Private names of other packages, where nothing public does it: who uses them, and why. At most 8.
FOREIGN_PRIVATE = {
    (
        "engine/models/pretrained/model_folder.py",
        "_class_name",
    ): "a key of diffusers' config.json, whose format it is",
    ("engine/models/foreign/reading.py", "_utils"): "text that pickle files of torch hold: no attribute is taken",
    ("engine/models/foreign/reading.py", "_core"): "text that pickle files of numpy hold: no attribute is taken",
    **{
        ("engine/models/foreign/reading.py", name): "a key of modules of torch in NVIDIA's pickle files"
        for name in ("_parameters", "_buffers", "_modules")
    },
}


@cache
def defined_in(path: Path) -> set[str]:
    """The names that a module gives to functions, classes, attributes and variables."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def private_names(path: Path) -> set[str]:
    """The names with a leading underscore that a module takes from elsewhere: by import, attribute, or as text."""
    here, inherited = defined_in(path), set().union(*map(defined_in, modules()))
    used = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            of_self = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            used |= {node.attr} - (inherited if of_self else here)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            used |= {part for name in names for part in name.split(".")}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # for getattr and its like
            used |= {part for part in node.value.split(".") if re.fullmatch(r"_[a-z]\w+", part)} - here
    return {name for name in used if re.match(r"_[^_]", name)} - {"_exit"}  # documented: os._exit


def test_private_parts_of_other_packages_are_few_and_have_their_reason() -> None:
    found = {(str(path.relative_to(PACKAGE)), name) for path in modules() for name in private_names(path)}
    assert found == FOREIGN_PRIVATE.keys()
    assert len(found) <= 8


def test_the_command_line_starts_light() -> None:
    code = (
        "import sys, ftae.cli.main, ftae.specs, ftae.specs.files\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'optuna', 'diffusers', 'numpy', 'rich'} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"


# What takes seconds of every process of a search, and a plain one needs not.
SLOW = (
    "torchvision",
    "torchmetrics",
    "scipy.signal",
    "sklearn",
    "diffusers",
    "vector_quantize_pytorch",
    "matplotlib",
)


# What one process does, one after the other, each without what is named beside it. The last shows the names are right.
IN_ORDER = {
    "run": (
        """
        from pathlib import Path
        from ftae.engine.training.loop import finetune
        from ftae.specs.finetune.run import FinetuneSpec

        spec, folder = FinetuneSpec.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2])
        *_, last = finetune(spec, folder / "run")
        *_, again = finetune(spec, folder / "again", resume_from=folder / "run" / last.checkpoint)
        assert again.metrics == last.metrics
        """,
        {*SLOW, "mlflow", "optuna", "scipy", "pandas"},
    ),
    "worker": ("import ftae.search.ray.trial", {*SLOW, "mlflow", "optuna"}),
    "driver": ("import ftae.search.driver", {*SLOW}),
    "torchvision": ("import torchvision", {*SLOW}),
}


@pytest.fixture(scope="module")
def slow_imports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Those that have been made after each step of ``IN_ORDER``."""
    folder = tmp_path_factory.mktemp("imports")
    run: dict[str, Any] = {
        "model": {"family": "conv_vae"},
        "data": {"source": "shapes", "resolution": 16, "num_images": 40},
        "losses": {"mse": 1.0, "kl": 1e-4, "ssim": 0.1},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "metrics": ["psnr", "ssim", "kl", "active_units"],
        "ema_half_life_fraction": 0.1,
        "batch_size": 4,
        "max_steps": 2,
        "num_evals": 1,
    }
    code = "import json, sys\nfound = {}\n" + "\n".join(
        f"{textwrap.dedent(step)}\nfound[{name!r}] = sorted({names} & sys.modules.keys())"
        for name, (step, names) in IN_ORDER.items()
    )
    result = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint(json.dumps(found))", json.dumps(run), str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"FTAE_CACHE": str(folder / "cache")},
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return found


def test_a_worker_starts_without_what_is_slow(slow_imports: dict[str, list[str]]) -> None:
    assert slow_imports["worker"] == []


def test_the_names_of_what_is_slow_are_right(slow_imports: dict[str, list[str]]) -> None:
    assert "torchvision" in slow_imports["torchvision"]


def test_a_plain_run_needs_nothing_that_is_slow(slow_imports: dict[str, list[str]]) -> None:
    assert slow_imports["run"] == []


def test_a_driver_starts_without_what_is_slow(slow_imports: dict[str, list[str]]) -> None:
    assert slow_imports["driver"] == []
