"""The documentation site: it builds without a warning, its links resolve, and its tables hold everything there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import field_tables
import page_text
import pytest
import tables
from spec_classes import specs_below

from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.reading.schema import descriptions

ROOT = Path(__file__).parents[2]
REPOSITORY = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES = [*REPOSITORY, *sorted(ROOT.glob("docs/*.md"))]
CODE = re.compile(r"^```.*?^```|`[^`\n]+`", re.DOTALL | re.MULTILINE)


def links(page: Path) -> list[str]:
    """The targets of the links of a page that lead to files and headings here."""
    text = CODE.sub("", page.read_text(encoding="utf-8"))
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, those of its generated parts included."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"<!-- generated: (\w+) -->", lambda found: tables.generated(found[1]), text)
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {page_text.slug(heading) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    wrong = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert wrong == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_builds_without_a_warning(site: Path) -> None:
    assert {path.parent.name for path in site.glob("*/index.html")} >= {"fields", "commands", "api", "architecture"}
    assert (site / "index.html").is_file()


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    loaded = r'<(?:script|img|iframe)[^>]+src="(?:https?:)?//|<link[^>]+href="(?:https?:)?//'
    assert [path for path in site.rglob("*.html") if re.search(loaded, path.read_text(encoding="utf-8"))] == []


def test_no_marker_is_left_on_the_site(site: Path) -> None:
    left = r"<!-- (?:generated|file): "
    assert [path for path in site.rglob("*.html") if re.search(left, path.read_text(encoding="utf-8"))] == []


def test_every_generated_part_is_on_a_page() -> None:
    used = {name for page in PAGES for name in re.findall(r"<!-- generated: (\w+) -->", page.read_text("utf-8"))}
    assert used == set(tables.PARTS)


def test_every_field_is_in_the_tables_with_its_meaning() -> None:
    sections = [*field_tables.sections(), field_tables.PRODUCTION]
    specs = specs_below(SearchSpec, set()) | {ProductionSpec}
    assert {spec for section in sections for _, spec in section.specs} >= specs
    text = field_tables.fields()
    missing, unclear = [], []
    for section in sections:
        heading = f"## `{section.path}`\n" if section.path else "## The file itself\n"
        part = text.partition(heading)[2].partition("\n## ")[0]
        for _, spec in section.specs:
            missing += [f"{section.path}.{name}" for name in spec.model_fields if f"\n| `{name}` |" not in part]
            described = descriptions(spec)
            unclear += [f"{section.path}.{name}" for name in spec.model_fields if name not in described]
    assert missing == []
    assert {name for name in unclear if name.rpartition(".")[2] not in field_tables.TAGS} == set()
