"""The classes of specs, for tests that hold all of them to something."""

from pydantic import BaseModel

from ftae.specs.reading.schema import alternatives, model_of


def specs_below(spec_type: type[BaseModel], found: set[type[BaseModel]]) -> set[type[BaseModel]]:
    """A spec and all that stand in its fields."""
    if spec_type not in found:
        found.add(spec_type)
        for field in spec_type.model_fields.values():
            for kind in alternatives(field.annotation):
                if (inner := model_of(kind)) is not None:
                    specs_below(inner, found)
    return found
