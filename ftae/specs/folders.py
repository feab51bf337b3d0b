"""The folders that a file names, as this machine has them."""

from pathlib import Path

from ftae.specs.data import ImageFolder
from ftae.specs.problems import Problem, dotted
from ftae.specs.search import ProductionSpec, SearchSpec


def missing_folders(spec: SearchSpec | ProductionSpec) -> list[Problem]:
    """The folders of images that are not there, each with its place in the file."""
    named: dict[tuple[str, ...], str] = {}
    for place, data in ((("data",), spec.finetune.data), (("data", "replay"), spec.finetune.data.replay)):
        if isinstance(data, ImageFolder):
            named[(*place, "train")] = data.train
            if isinstance(data.val, str):
                named[(*place, "val")] = data.val
    return [
        (("finetune", *place), f"{dotted((folder,))} is not a folder")
        for place, folder in named.items()
        if not Path(folder).expanduser().is_dir()
    ]
