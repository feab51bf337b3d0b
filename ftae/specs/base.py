"""The base of every spec: frozen, closed to unknown keys, with a stable digest."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ftae.specs.schema import alternatives, model_of
from ftae.specs.strict import DOUBTFUL, strictly

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

    @model_validator(mode="before")
    @classmethod
    def _strictly(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kinds = _kinds(cls)
        return {k: strictly(kinds[k], v) if isinstance(v, DOUBTFUL) and k in kinds else v for k, v in given.items()}

    def digest(self) -> str:
        """16 hexadecimal digits that depend on every value and on nothing else (not on key order)."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.blake2b(canonical.encode(), digest_size=8).hexdigest()


@cache
def _kinds(spec_type: type[Spec]) -> dict[str, list[Any]]:
    """The alternatives of every field that is no section."""
    found = {name: alternatives(field.annotation) for name, field in spec_type.model_fields.items()}
    return {name: kinds for name, kinds in found.items() if not any(model_of(kind) for kind in kinds)}
