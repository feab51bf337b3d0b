"""The base of every spec: frozen, closed to unknown keys, with a stable digest."""

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Weight = Annotated[float, Field(ge=0.0)]


def absolute(path: str) -> str:
    """Of a path as a file has it, so that it can be used from any folder."""
    return str(Path(path).expanduser().absolute())


class Spec(BaseModel):
    """A validated description. Change one by building a new one (``specs.overrides``)."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    def digest(self) -> str:
        """16 hexadecimal digits that depend on every value and on nothing else (not on key order)."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()
