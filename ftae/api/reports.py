"""What a search has found: as a file, as a page, and beside another search."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ftae.results.comparison import Comparison


def report(name: str, storage: str = "searches", out: Path | str | None = None) -> Path:
    """Write what a search has found as one HTML file, which needs no network.

    A search writes it itself while it runs, and at its end.

    Args:
        name: the name of a search below ``storage``, or the folder of a search or a production run.
        storage: the folder or the URL of the object store that holds the searches.
        out: the file to write; by default ``report.html`` of the search. An object store keeps that file; this machine
            gets a copy.

    Returns:
        The file.

    Raises:
        FtaeError: there is no such search, its journal cannot be read, or ``out`` cannot be written.
        OSError: the storage cannot be read.

    Examples:
        >>> ftae.report("quickstart")
        PosixPath('/home/me/searches/quickstart/report.html')
    """
    from ftae.errors import FtaeError
    from ftae.reporting.document import report_of
    from ftae.results.outcome import REPORT
    from ftae.results.summary import find_search
    from ftae.storage.lease import seems_driven

    store = find_search(name, storage)
    content = report_of(store, is_live=out is None and seems_driven(store))
    if out is None:
        store.write(REPORT, content)
        store.release(REPORT)  # an earlier copy
        return store.fetch(REPORT)
    file = Path(out).expanduser().absolute()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    except OSError as error:
        raise FtaeError(f"cannot write {file}: {error.strerror}") from error
    return file


def tracking_page(name: str, storage: str = "searches", ui: str = "http://127.0.0.1:5000") -> str:
    """The address of a search's page in MLflow.

    Args:
        name: the name of a search below ``storage``, or the folder of a search or a production run.
        storage: the folder or the URL of the object store that holds the searches.
        ui: where ``ftae ui`` serves the store, for a search that is not tracked on a server.

    Raises:
        FtaeError: there is no such search, or MLflow has nothing of it, or cannot be reached.
    """
    from ftae.results.summary import find_search
    from ftae.search.tracking_sync import page_address

    return page_address(find_search(name, storage), embedded=ui)


def compare(a: str, b: str, storage: str = "searches") -> "Comparison":
    """Compare two searches, training runs or exported trials that were measured on the same images.

    Of a search, the best trial counts.

    Args:
        a: the name of a search below ``storage``, its folder, the folder of a training run, or that of an export.
        b: as ``a``.
        storage: the folder or the URL of the object store that holds the searches.

    Returns:
        The metrics of both, what differs in their settings, what they cost, and what cannot be compared.

    Raises:
        FtaeError: there is no such search or folder, no trial of it ran to its full budget, the two were measured on
            different images, or they share no metric.

    Examples:
        >>> found = ftae.compare("quickstart", "exports/quickstart")
        >>> [(metric.metric, metric.difference, metric.better) for metric in found.metrics]
    """
    from ftae.results.comparison import compare

    return compare(str(a), str(b), storage)
