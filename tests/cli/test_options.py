"""Tables as CSV: what is printed is read back, and no cell is a formula."""

import csv
import io
from importlib.resources import files
from typing import Any

import pytest

from ftae.cli import options
from ftae.cli.options import print_csv


def read_back(capfd: pytest.CaptureFixture[str], *rows: dict[str, Any]) -> list[dict[str, str]]:
    print_csv(list(rows))
    text = capfd.readouterr().out
    assert text.count("\r\n") >= len(rows)
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_numbers_keep_their_digits_and_texts_their_content(capfd: pytest.CaptureFixture[str]) -> None:
    row = {"a": 0.1 + 0.2, "b": -1e-300, "c": 3, "d": 'two\nlines, "quoted"'}
    [found, other] = read_back(capfd, row, {"a": None, "b": True, "c": [0.5, 0.9], "d": ""})
    assert (float(found["a"]), float(found["b"]), int(found["c"]), found["d"]) == tuple(row.values())
    assert other == {"a": "", "b": "true", "c": "[0.5, 0.9]", "d": ""}


def test_no_text_is_a_formula(capfd: pytest.CaptureFixture[str]) -> None:
    for text in ("=1+1", "+1", "-1", "@x", "\tx", "\rx"):
        assert read_back(capfd, {"=name": text}) == [{"'=name": f"'{text}"}]
    assert read_back(capfd, {"name": "a=1"}) == [{"name": "a=1"}]


def test_the_page_of_a_report_has_the_same_rule() -> None:
    """The page makes its file itself, of the rows that its reader has chosen."""
    script = (files("ftae.reporting") / "page" / "report.js").read_text()
    assert f"/^{options._FORMULA.pattern}/.test" in script
