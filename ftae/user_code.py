"""Code that a file names by ``package.module:attr``: whether it may run, and importing it."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError, one_message
from ftae.wording import did_you_mean

ALLOW_CODE = "FTAE_ALLOW_CODE"  # an environment variable, since a search's workers must have it, too


def code_option() -> list[str]:
    """The option that a command needs which is to do as this process does."""
    return ["--allow-code"] if os.environ.get(ALLOW_CODE) else []


def check_code_allowed(reference: str) -> None:
    """Refuse the code that a file names, unless the user has said that it may run.

    Raises:
        FtaeError: it may not.
    """
    if not os.environ.get(ALLOW_CODE):
        raise FtaeError(
            f"{reference!r} names code, which a file may only run if you trust it: read that module, "
            "then give --allow-code"
        )


def import_attr(reference: str) -> Any:
    """Import ``package.module:attr``, which runs that module's code.

    Raises:
        FtaeError: code may not run; the module cannot be imported, whatever it raises, or has no such attribute.
    """
    check_code_allowed(reference)
    module_name, _, attr = reference.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # a script's own folder is there, the current one is not
        sys.path.insert(0, here)
    with one_message(f"cannot import {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # it is there, and imports something that is not
            raise FtaeError(
                f"cannot import {module_name!r} of {reference!r}: {error}. "
                "The module must be importable from the current folder or installed on every node"
            ) from error
        if not hasattr(module, attr):
            raise FtaeError(f"{module_name!r} has no attribute {attr!r}{did_you_mean(attr, vars(module))}")
        return getattr(module, attr)
