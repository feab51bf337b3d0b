"""Tables as CSV: what is written is read back, and no cell is a formula."""

import csv
import io
from importlib.resources import files

from ftae.results import csv_text as module
from ftae.results.csv_text import csv_text


def test_numbers_keep_their_digits_and_texts_their_content() -> None:
    rows = [[0.1 + 0.2, -1e-300, 3, 'two\nlines, "quoted"'], [None, True, [0.5, 0.9], ""]]
    text = csv_text(["a", "b", "c", "d"], rows)
    assert text.startswith("a,b,c,d\r\n")
    assert text.endswith("\r\n")
    first, second = list(csv.DictReader(io.StringIO(text, newline="")))
    assert (float(first["a"]), float(first["b"]), int(first["c"]), first["d"]) == tuple(rows[0])
    assert second == {"a": "", "b": "true", "c": "[0.5, 0.9]", "d": ""}


def test_no_text_is_a_formula() -> None:
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "a=1"]
    read = list(csv.reader(io.StringIO(csv_text(["=name"], [[text] for text in texts]), newline="")))
    assert [cell for [cell] in read] == [f"'{text}" for text in ["=name", *texts[:-1]]] + ["a=1"]


def test_the_page_of_a_report_has_the_same_rule() -> None:
    """The page makes its file itself, of the rows that its reader has chosen."""
    script = (files("ftae.reporting") / "page" / "report.js").read_text()
    assert f"/^{module._FORMULA.pattern}/.test" in script
