"""The sources of images that need no folder: what each is a function of, and its images."""

from ftae.engine.shapes import VERSION, shapes_source
from ftae.engine.sources import Source, builtin_content, digits_source, photos_source
from ftae.specs.data import Digits, Photos, Shapes

Builtin = Digits | Photos | Shapes


def content_of(spec: Builtin) -> list[object]:
    """All that the pixels depend on, besides side and colour."""
    return [spec.source, VERSION, spec.num_images] if isinstance(spec, Shapes) else builtin_content(spec)


def source_of(spec: Builtin) -> Source:
    if isinstance(spec, Shapes):
        return shapes_source(spec)
    return digits_source(spec) if isinstance(spec, Digits) else photos_source(spec)
