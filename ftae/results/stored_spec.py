"""The specs in a journal: of a search, of a production run, and of a single trial."""

from ftae.errors import FtaeError
from ftae.results.search_record import SearchRecord, TrialRecord
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.reading.format_versions import reading_back, stored
from ftae.specs.search.search import ProductionSpec, SearchSpec


def spec_of(record: SearchRecord) -> SearchSpec | ProductionSpec:
    """Read the spec of a search or a production run, as its newest driver had it.

    Raises:
        FtaeError: another version of ftae wrote the spec, with other fields.
    """
    if record.kind == "search":
        return stored(SearchSpec, record.search, _journal_of(record), _version(record))
    content = {key: value for key, value in record.search.items() if key in ProductionSpec.model_fields}
    return stored(ProductionSpec, content, _journal_of(record), _version(record))


def search_of(record: SearchRecord) -> SearchSpec:
    """Read the spec of a search, as its newest driver had it.

    Raises:
        FtaeError: another version of ftae wrote the spec, with other fields; or it is a production run.
    """
    spec = spec_of(record)
    if isinstance(spec, ProductionSpec):
        raise FtaeError(
            f"{record.name} is a production run, not a search; its model is in the folder model beside its journal, "
            "and ftae train --resume continues it"
        )
    return spec


def run_of(record: SearchRecord, trial: TrialRecord) -> FinetuneSpec:
    """Return the complete run of a trial, with what had to be changed on the way and what was measured on images.

    Raises:
        FtaeError: as ``spec_of``.
    """
    spec = spec_of(record)
    if isinstance(spec, ProductionSpec):
        return spec.finetune
    with reading_back(_journal_of(record), FinetuneSpec, _version(record)):
        run = spec.trial_spec(trial.settings)
    return run.with_levels(record.facts.get("levels"))


def _journal_of(record: SearchRecord) -> str:
    return f"the journal of {record.search.get('name')}"


def _version(record: SearchRecord) -> str | None:
    versions = record.facts.get("versions")
    version = versions.get("ftae") if isinstance(versions, dict) else None
    return version if isinstance(version, str) else None
