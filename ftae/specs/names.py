"""Names that become names of files, folders, and entries of MLflow: which are safe there."""

import re
import unicodedata

LONGEST = 200  # bytes: file systems take 255, and a suffix follows
# What the embedded MLflow store of a storage folder is called, beside the searches there.
_EMBEDDED = ("mlflow.db", "mlartifacts", "mlruns")


def file_name_problem(name: object) -> str | None:
    """Why ``name`` cannot be a file's own name, on any system; None where it can.

    Names come from files that others wrote: none may lead out of the folder it belongs in.
    """
    if not isinstance(name, str):
        return "must be text"
    if not name.strip(" .") or name != name.strip():
        return "must not be empty, nor of dots alone, nor begin or end with a space"
    if any(mark in name for mark in "/\\") or re.match("[A-Za-z]:", name) or name.startswith("~"):
        return "must be the name of a file, not a path (without / and \\, not beginning with ~ or a drive such as C:)"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "must not hold control characters"
    if len(name.encode()) > LONGEST:
        return f"must have at most {LONGEST} bytes"
    return None


def leads_out(path: object) -> bool:
    """Whether a path that a file gives leads out of the folder that it is relative to."""
    return not isinstance(path, str) or path.startswith("/") or ".." in path.split("/") or "\0" in path


def search_name_problem(name: str) -> str | None:
    """Why a search cannot be called so: its folder would take the place of what lies beside it."""
    plain = name.casefold()
    if plain in _EMBEDDED or plain.startswith("mlflow.db"):
        return "is what the embedded MLflow store is called, choose another name"
    return file_name_problem(name)


def registry_name_problem(name: str) -> str | None:
    """Why MLflow's registry takes no model of this name; None where it does."""
    if not name.strip() or any(mark in name for mark in "/:") or name in (".", ".."):
        return "must be a name without / and :"
    if len(name) > 256:
        return "must have at most 256 characters"
    return None
