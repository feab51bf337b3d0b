"""What an earlier ftae has written, read by this one: what does not fit is one message."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ValidationError

from ftae import __version__
from ftae.errors import FtaeError
from ftae.specs.reading.base import Spec
from ftae.specs.reading.problems import dotted, problems

S = TypeVar("S", bound=Spec)

SHOWN = 3  # problems in a message


@contextmanager
def reading_back(what: str, kind: type[Spec], version: str | None = None) -> Iterator[None]:
    """Read ``what``, which holds a ``kind``, inside; ``version``: the ftae that wrote it, where that is known.

    Raises:
        FtaeError: a spec in it has a field that this version lacks, or lacks one that it wants.
    """
    try:
        yield
    except ValidationError as error:
        found = [f"{dotted(location)}: {rule}" if location else rule for location, rule in problems(kind, error)]
        more = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        writer = f" ({version}, this is {__version__})" if version not in (None, __version__) else ""
        raise FtaeError(
            f"{what} was written by another version of ftae{writer}, or changed since: {'; '.join(found[:SHOWN])}{more}"
        ) from error


def stored(kind: type[S], data: Any, what: str, version: str | None = None) -> S:
    """The spec that ``what`` holds as ``data``. Raises as ``reading_back``."""
    with reading_back(what, kind, version):
        return kind.model_validate(data)
