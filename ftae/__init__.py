"""Distributed hyperparameter search for fine-tuning autoencoders. The Python API is described in ``ftae.api``.

Importing this package is cheap: each name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftae.api import (
        CacheEntry,
        Search,
        TrainedRun,
        Trial,
        cache_entries,
        clean_cache,
        compare,
        confirm,
        convert,
        draft_search,
        load_model,
        open_search,
        read_search,
        read_training,
        report,
        resume_search,
        run_search,
        run_training,
        submit_confirmation,
        submit_search,
        sync_search,
        tracking_page,
        validate,
    )
    from ftae.errors import FtaeError, SpecError, TrainingFailed
    from ftae.inference.files import Model
    from ftae.specs import Choices, FinetuneSpec, ProductionSpec, Range, SearchSpec

__version__ = "0.2.0"

__all__ = [
    "CacheEntry",
    "Choices",
    "FinetuneSpec",
    "FtaeError",
    "Model",
    "ProductionSpec",
    "Range",
    "Search",
    "SearchSpec",
    "SpecError",
    "TrainedRun",
    "TrainingFailed",
    "Trial",
    "cache_entries",
    "clean_cache",
    "compare",
    "confirm",
    "convert",
    "draft_search",
    "load_model",
    "open_search",
    "read_search",
    "read_training",
    "report",
    "resume_search",
    "run_search",
    "run_training",
    "submit_confirmation",
    "submit_search",
    "sync_search",
    "tracking_page",
    "validate",
]

_ELSEWHERE = {
    "ftae.errors": ("FtaeError", "SpecError", "TrainingFailed"),
    "ftae.specs": ("Choices", "FinetuneSpec", "ProductionSpec", "Range", "SearchSpec"),
    "ftae.inference.files": ("Model",),
}

_MODULES = {name: module for module, names in _ELSEWHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'ftae' has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "ftae.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
