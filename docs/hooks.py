"""mkdocs hooks: tables made from the code, pages that are files of the repository, and links to files beside docs/.

A page may hold two markers, each alone on a line: ``<!-- generated: NAME -->`` stands for a text of ``tables.py``,
``<!-- file: PATH -->`` for a Markdown file of the repository. A link that leads out of docs/ goes to the page that
shows this file, or to a copy of it on the site.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import tables
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

# Files of the repository that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}

COPIES = "files"  # where the site has copies of other files

_MARKER = re.compile(r"^<!-- (generated|file): (.+?) -->$", re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_CODE = re.compile(r"(^```.*?^```$|``.+?``|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    """Add copies of the files that pages link to."""
    for source in [*Path(config.docs_dir).glob("*.md"), *(ROOT / name for name in PAGES)]:
        for target in outside_links(source):
            if PAGES.get(target) is None and files.get_file_from_path(f"{COPIES}/{target}") is None:
                files.append(File.generated(config, f"{COPIES}/{target}", abs_src_path=str(ROOT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Put in what the markers stand for, and turn links out of docs/ to where the site has the file."""
    markdown = with_links(markdown, Path(page.file.abs_src_path or "").parent)
    return _MARKER.sub(lambda found: _filled(found[1], found[2]), markdown)


def outside_links(source: Path) -> list[str]:
    """The files beside docs/ that a Markdown file links to, as paths below the repository."""
    found: list[str] = []

    def note(target: str) -> str:
        path = _below_root(target, source.parent)
        if path is not None and not path.startswith("docs/"):
            found.append(path)
        return target

    _each_link(source.read_text(encoding="utf-8"), note)
    return found


def with_links(markdown: str, folder: Path) -> str:
    """The text with its links as a page at the top of the site needs them; ``folder`` is where the text comes from."""

    def turned(target: str) -> str:
        path = _below_root(target, folder)
        if path is None:
            return target
        anchor = target.partition("#")[2]
        page = path.removeprefix("docs/") if path.startswith("docs/") else PAGES.get(path, f"{COPIES}/{path}")
        return page + (f"#{anchor}" if anchor else "")

    return _each_link(markdown, turned)


def _each_link(markdown: str, change: Callable[[str], str]) -> str:
    """The text with the target of every link changed; code stays as it is."""
    parts = _CODE.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: found[1] + change(found[2]) + found[3], part) for part in parts[::2]]
    return "".join(parts)


def _below_root(target: str, folder: Path) -> str | None:
    """The file that a relative link leads to, as a path below the repository; None for all other links."""
    path = target.partition("#")[0]
    if not path or re.match(r"[a-z]+:", target):
        return None
    return str(PurePosixPath(os.path.relpath(folder / path, ROOT)))


def _filled(kind: str, name: str) -> str:
    if kind == "generated":
        return tables.generated(name)
    return with_links((ROOT / name).read_text(encoding="utf-8"), (ROOT / name).parent)
