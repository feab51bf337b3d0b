"""Texts that others wrote, such as names, reasons and files, on their way into a page."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from ftae.specs.reading.names import redacted

LONGEST_LABEL = 60  # characters, of a text in a plot


def without_secrets(value: Any, addresses: Sequence[str] = ()) -> Any:
    """A plain value, its texts without the secrets of addresses in them, its numbers finite and short.

    ``addresses``: further ones whose secrets may stand anywhere. A number that is not finite becomes None.
    """
    if isinstance(value, str):
        return redacted(value, *addresses)
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {redacted(str(key), *addresses): without_secrets(inner, addresses) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner, addresses) for inner in value]
    return value


def in_script(value: Any) -> Markup:
    """A plain value as JSON that can stand in a ``<script>`` element: nothing in it can end the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def in_plot(text: object) -> str:
    """A text for a plot, whose labels understand some HTML."""
    plain = str(text)
    return html.escape(plain if len(plain) <= LONGEST_LABEL else f"{plain[: LONGEST_LABEL - 1]}…", quote=False)
