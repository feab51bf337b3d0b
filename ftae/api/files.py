"""Read and check files."""

from collections.abc import Sequence
from pathlib import Path

from ftae.api.unchanged_process import unchanged_process
from ftae.specs.files import load_any, load_production, load_search
from ftae.specs.search.lint import missing_folders
from ftae.specs.search.search import ProductionSpec, SearchSpec

PRODUCTION_FILE = "production.yaml"


def read_search(file: Path | str, overrides: Sequence[str] = ()) -> SearchSpec:
    """Read a search file.

    Args:
        file: the path of a YAML file; ``-`` reads it from standard input.
        overrides: texts ``path=value`` that replace values of the file, such as ``"search.num_trials=4"``.

    Raises:
        SpecError: the file or an override is not valid; ``problems`` lists every fault with its line.
    """
    return load_search(Path(file), overrides, missing_folders)


def read_training(file: Path | str, overrides: Sequence[str] = ()) -> ProductionSpec:
    """Read a production file, or that of a folder that ``Search.export`` or ``run_training`` wrote.

    Args:
        file: the path of a YAML file, or of the folder with ``production.yaml``.
        overrides: texts ``path=value`` that replace values of the file, such as ``"finetune.max_steps=1000"``.

    Raises:
        SpecError: the file or an override is not valid; ``problems`` lists every fault with its line.
    """
    path = Path(file)
    return load_production(path / PRODUCTION_FILE if path.is_dir() else path, overrides, missing_folders)


def validate(
    spec: SearchSpec | ProductionSpec | Path | str, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> list[str]:
    """Check a spec, or a search or production file, as far as possible without training.

    Lists the images, builds the model, and adds up what the search would store.

    Args:
        spec: a spec or the path of a file.
        overrides: for a file: texts ``path=value``.
        allow_code: allow code that the spec names.

    Returns:
        The lines of the plan: trials, rungs, stages, checkpoints, storage, and warnings.

    Raises:
        FtaeError: the spec cannot be run; the message says why.

    Examples:
        >>> print("\\n".join(ftae.validate(ftae.read_search("search.yaml"))))
    """
    from ftae.search.plan import plan

    if not isinstance(spec, SearchSpec | ProductionSpec):
        spec = load_any(Path(spec), overrides, missing_folders)
    with unchanged_process(allow_code):
        return plan(spec)
