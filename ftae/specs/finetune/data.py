"""The data of a run: the union of the specs of all sources, and of the replayed ones."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import Field, create_model

from ftae.specs.finetune.data_spec import DataSpec, Replayed
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.specs.finetune.sources.builtin import BUILTIN, BuiltinData
from ftae.specs.finetune.sources.folders import FOLDERS
from ftae.specs.finetune.sources.two_sided import TWO_SIDED

# Each source can be replayed, too: its spec for that is derived from this list.
SOURCE_SPECS: tuple[type[DataSpec], ...] = (*FOLDERS, *TWO_SIDED, Arrays, *BUILTIN)
if TYPE_CHECKING:
    AnyData = DataSpec
else:
    AnyData = Annotated[reduce(or_, SOURCE_SPECS), Field(discriminator="source")]
PAIRED_SOURCES, UNPAIRED_SOURCES = (
    frozenset(str(kind.model_fields["source"].default) for kind in SOURCE_SPECS if getattr(kind, fact))
    for fact in ("paired", "unpaired")
)


def _replayed(source: type[DataSpec]) -> Any:
    """The spec of replayed images of a source."""
    name, doc = f"Replayed{source.__name__}", f"Replayed images: the fields of ``{source.__name__}``, and their share."
    derived: Any = create_model(name, __base__=(source, Replayed), __doc__=doc, __module__=__name__)
    globals()[name] = derived  # where pickle looks for it
    return derived


AnyReplayed: Any = reduce(or_, map(_replayed, SOURCE_SPECS))

for _spec in (DataSpec, BuiltinData, *SOURCE_SPECS, Replayed, *get_args(AnyReplayed)):
    _spec.model_rebuild()
