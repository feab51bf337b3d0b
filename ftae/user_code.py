"""Code that a file names by ``package.module:attr``: permission to run it, and its import."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError, one_message
from ftae.wording import did_you_mean

ALLOW_CODE = "FTAE_ALLOW_CODE"  # an environment variable, because the workers of a search inherit it


@contextmanager
def code_allowed(allowed: bool = True) -> Iterator[None]:
    """Inside, files may name code if ``allowed`` or if the variable is set; afterwards all is as before.

    That includes the import path, to which ``import_attr`` adds the current folder.
    """
    here, before = str(Path.cwd()), os.environ.get(ALLOW_CODE)
    was_on_path = here in sys.path
    if allowed:
        os.environ[ALLOW_CODE] = "1"
    try:
        yield
    finally:
        if not was_on_path and here in sys.path:
            sys.path.remove(here)
        if allowed and before is None:
            del os.environ[ALLOW_CODE]
        elif allowed and before is not None:
            os.environ[ALLOW_CODE] = before


def code_option() -> list[str]:
    """Return the command-line option that another ``ftae`` command needs in order to allow what this process allows."""
    return ["--allow-code"] if os.environ.get(ALLOW_CODE) else []


def check_code_allowed(reference: str) -> None:
    """Refuse the code that a file names unless the user allowed it.

    Raises:
        FtaeError: the code may not run.
    """
    if not os.environ.get(ALLOW_CODE):
        raise FtaeError(
            f"{reference!r} names code, which runs only if you allow it: read that module, then use --allow-code "
            f"(allow_code=True in Python, {ALLOW_CODE}=1 in the environment of a served model)"
        )


def import_attr(reference: str) -> Any:
    """Import ``package.module:attr``, which runs the code of that module. The current folder is searched, too.

    Raises:
        FtaeError: the user does not allow code; the module cannot be imported, whatever it raises; or it has no such
            attribute.
    """
    check_code_allowed(reference)
    module_name, _, attr = reference.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # Python adds the folder of the script, not the current one
        sys.path.insert(0, here)
    with one_message(f"cannot import {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module exists and imports another that does not
            raise FtaeError(
                f"cannot import {module_name!r} of {reference!r}: {error}. "
                "The module must be importable from the current folder or installed on every node"
            ) from error
        if not hasattr(module, attr):
            raise FtaeError(f"{module_name!r} has no attribute {attr!r}{did_you_mean(attr, vars(module))}")
        return getattr(module, attr)
