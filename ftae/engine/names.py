"""Names of files in text: a name is bytes, which need be neither UTF-8 nor one line."""

import os


def as_text(name: str) -> str:
    """The name as valid Unicode: bytes that are no UTF-8 become ``\\xfc`` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def legible(name: str) -> str:
    """The name for a message: ``as_text``, and on one line, whatever control characters it holds."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in as_text(name))
