"""Checking the models of a search before it begins: beside the driver, which thus need not import PyTorch itself.

    python check.py SEARCH_AS_JSON NUM_CLASSES

Prints the bytes of a checkpoint, or what is wrong, as JSON.
"""

import json
import os
import sys
from typing import Any

from ftae.errors import FtaeError
from ftae.importing import importing
from ftae.search.template_client import run_in_copy
from ftae.specs.search import SearchSpec


def checkpoint_bytes(spec: SearchSpec, num_classes: int | None) -> int:
    """Bytes of one checkpoint, of the models that ``engine.build.check_search`` has built. Raises as that."""
    found = _in_copy(spec, num_classes) or _here(spec, num_classes)
    if "wrong" in found:
        raise FtaeError(found["wrong"])
    size: int = found["checkpoint_bytes"]
    return size


def _in_copy(spec: SearchSpec, num_classes: int | None) -> dict[str, Any] | None:
    """None if there is no template, or none that lives."""
    answer, asked = os.pipe()
    with os.fdopen(answer) as file:
        begun = run_in_copy([__file__, spec.model_dump_json(), json.dumps(num_classes)], streams=(0, asked, 2))
        os.close(asked)
        text = file.read() if begun else ""
    return json.loads(text) if text else None


def _here(spec: SearchSpec, num_classes: int | None) -> dict[str, Any]:
    with importing():
        from ftae.engine.build import check_search
    try:
        return {"checkpoint_bytes": check_search(spec, num_classes).checkpoint_bytes}
    except FtaeError as error:
        return {"wrong": str(error)}


if __name__ == "__main__":
    json.dump(_here(SearchSpec.model_validate_json(sys.argv[1]), json.loads(sys.argv[2])), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # to take apart all that was imported would take a second, for which the driver would wait
