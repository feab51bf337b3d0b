"""Code that a file names by ``package.module:attr``: permission to run it, and its import."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError, one_message
from ftae.wording import did_you_mean

ALLOW_CODE = "FTAE_ALLOW_CODE"  # an environment variable, since the workers of a search need it, too


def code_option() -> list[str]:
    """The options that give a command the same permission as this process."""
    return ["--allow-code"] if os.environ.get(ALLOW_CODE) else []


def check_code_allowed(reference: str) -> None:
    """Refuse the code that a file names unless the user allowed it.

    Raises:
        FtaeError: the code may not run.
    """
    if not os.environ.get(ALLOW_CODE):
        raise FtaeError(
            f"{reference!r} names code, which a file may only run if you trust it: read that module, "
            "then give --allow-code"
        )


def import_attr(reference: str) -> Any:
    """Import ``package.module:attr``, which runs the code of that module.

    Raises:
        FtaeError: code may not run, the module cannot be imported (whatever it raises), or it lacks the attribute.
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
