"""Whether there is a search of this name already: known before anything slow is imported or started."""

from ftae import journal
from ftae.errors import FtaeError
from ftae.record import SearchRecord, done_of_asked
from ftae.specs.search import SearchSpec
from ftae.storage import open_store


def earlier(spec: SearchSpec, resume: bool | None) -> SearchRecord | None:
    """What the search to go on with holds; None for one that begins.

    Raises:
        FtaeError: there is none with ``resume``; or one without it, unless ``resume`` is None.
    """
    store = open_store(spec.search.storage, spec.name, "reader")
    store.refresh()
    found = journal.fold(store.folder) if store.exists() else None
    before = found if found is not None and found.trials else None
    if resume and before is None:
        raise FtaeError(f"there is nothing to resume in {store}; start the search without --resume")
    if before is not None and resume is False:
        ended, asked = before.ended.total(), before.search["search"]["num_trials"]
        raise FtaeError(
            f"{store} holds a search already ({done_of_asked(ended, asked, ' of ')} trials done). "
            "Go on with it by --resume, or give the new one another name (--set name=...)"
        )
    return before
