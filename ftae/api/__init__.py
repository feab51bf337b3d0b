"""The Python API: what the commands of ``ftae`` do, as functions.

A short tour:

    import ftae

    spec = ftae.read_search("search_spaces/quickstart.yaml", ["search.num_trials=4"])
    search = ftae.run_search(spec)
    print(search.leaderboard())
    model = ftae.load_model(search.export("exports/quickstart"))
    reconstructions = model.reconstruct(images)  # uint8 or float images (N, H, W, C)

Specs can also be built in Python: ``ftae.SearchSpec(name=..., finetune={...}, ...)`` takes the fields of the file, as
dicts or as objects such as ``ftae.Range(low=1e-4, high=1e-2, log=True)``. A value that is not valid raises pydantic's
``ValidationError``. The functions here raise ``ftae.FtaeError`` for what the user can fix, and ``OSError`` for files
that cannot be read or written.

``notify`` receives progress and notes, one line a call; by default they go to ``logging.getLogger("ftae")`` at level
INFO. ``allow_code=True`` allows the ``package.module:attr`` that a file names to run.

A call leaves the process as it was: environment variables, signal handlers, random generators, log levels and the
settings of torch. Heavy packages are imported by the functions that need them.
"""

from ftae.api.cache import CacheEntry, cache_entries, clean_cache
from ftae.api.drafts import draft_search
from ftae.api.files import read_search, read_training, validate
from ftae.api.jobs import submit_confirmation, submit_search
from ftae.api.models import TrainedRun, convert, load_model, run_training
from ftae.api.reports import compare, report, tracking_page
from ftae.api.searches import confirm, open_search, resume_search, run_search, sync_search
from ftae.results.search import Search, Trial

__all__ = [
    "CacheEntry",
    "Search",
    "TrainedRun",
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
