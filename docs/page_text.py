"""Text of the generated parts: Markdown tables, first sentences of docstrings, anchors of headings."""

import inspect
import re
from collections.abc import Iterable, Sequence

from ftae.specs.reading.base import Spec

Rows = Iterable[Sequence[str]]


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


_SENTENCE = re.compile(r"(?<=[^.]\.)\s+(?=[A-Z`])")


def about(spec: type[Spec]) -> str:
    """What the docstring of a spec class itself says, as Markdown."""
    return plain(inspect.cleandoc(spec.__dict__.get("__doc__") or ""))


def plain(text: str) -> str:
    """A docstring's text as Markdown, with the values of a file as YAML has them."""
    parts = re.split(r"(``.+?``)", text)
    parts[::2] = [re.sub(r"([*_])", r"\\\1", part) for part in parts[::2]]
    text = re.sub(r"`?\bNone\b`?", "`null`", "".join(parts).replace("``", "`"))
    return text.replace("`True`", "`true`").replace("`False`", "`false`")


def summary(doc: str | None) -> str:
    """The first sentence of a docstring."""
    return plain(_SENTENCE.split(" ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split()))[0])


def sentence(text: str) -> str:
    """A phrase as a sentence."""
    text = plain(" ".join(text.split()))
    return text[:1].upper() + text[1:] + ("" if not text or text.endswith(".") else ".")


def slug(heading: str) -> str:
    """The anchor of a heading, as the site makes it."""
    return re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
