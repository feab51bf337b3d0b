"""YAML files: what can be read, what gets one line instead, and anchors."""

from pathlib import Path

import pytest
import yaml
from builders import search_dict

from ftae.errors import SpecError
from ftae.specs import Range, SearchSpec
from ftae.specs.files import load_any, load_search

SEARCH = search_dict()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spec.yaml"


def problem(path: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load_any(path)
    (only,) = caught.value.problems
    assert "\n" not in only
    return only


BOMB = b"".join(
    b"%c: &%c [%s]\n" % (name, name, b"x" if name == ord("a") else b", ".join([b"*%c" % (name - 1)] * 20))
    for name in b"abcdef"
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", ":1: must be a mapping with the keys name, finetune, ..., got nothing"),
        (b"# only a comment\n", ":1: must be a mapping with the keys name, finetune, ..., got nothing"),
        (b"- 1\n- 2\n", ":1: must be a mapping with the keys name, finetune, ..., got [1, 2]"),
        (b"hello\n", ":1: must be a mapping with the keys name, finetune, ..., got 'hello'"),
        (bytes(range(256)), ":2: cannot be read: it is not a text file (UTF-8)"),
        ("name: caf\u00e9".encode("latin-1"), ":1: cannot be read: it is not a text file (UTF-8)"),
        ("name: x".encode("utf-16"), ":1: cannot be read: it is not a text file (UTF-8)"),
        (b"name: x\n\nfinetune: \x00\n", ":3: not valid YAML: special characters are not allowed (U+0000)"),
        (b"name: x\r\nfinetune: \x1b\r\n", ":2: not valid YAML: special characters are not allowed (U+001B)"),
        (b"name: x\nmax_steps: " + b"9" * 5000 + b"\n", ":2: not valid YAML: Exceeds the limit"),
        (b"name: x\nb: !!binary '\xc3\xa9'\n", ":2: not valid YAML: failed to convert base64 data into ascii"),
        (BOMB, ":5: not valid YAML: its aliases stand for more than 100000 values"),
        (BOMB.replace(b"f: [", b"<<: ["), ":5: not valid YAML: its aliases stand for more than 100000 values"),
        (b"name: a: b\n", ":1: not valid YAML: mapping values are not allowed here"),
        (b"name: x\nfinetune:\n\tmodel: 3\n", ":3: not valid YAML: while scanning for the next token found character"),
        (b"name: x\nlist: [1\n\n\n", ":2: not valid YAML: while parsing a flow sequence"),
        (b"a: 1\n---\nb: 2\n", ":2: not valid YAML: expected a single document in the stream"),
        (b"a: *x\n", ":1: not valid YAML: found undefined alias 'x'"),
        (b"a: !!python/name:os.system x\n", ":1: not valid YAML: could not determine a constructor for the tag"),
        (b"{[a]: 1}\n", ":1: not valid YAML: while constructing a mapping found unhashable key"),
        (b"name: x\nfinetune: &a\n  model: {deep: *a}\n", ":2: not valid YAML: an alias stands inside what it names"),
        (b"name: x\nfinetune: &a\n  <<: *a\n", ":2: not valid YAML: an alias stands inside what it names"),
        (b"[" * 20_000, ":1: not valid YAML: nested too deeply"),
    ],
)
def test_content_that_is_no_mapping_gets_one_line(path: Path, content: bytes, expected: str) -> None:
    path.write_bytes(content)
    assert problem(path).startswith(f"{path}{expected}")


def test_a_path_that_cannot_be_read_gets_one_line(path: Path) -> None:
    assert problem(path) == f"{path}: cannot be read: No such file or directory"
    assert problem(path.parent) == f"{path.parent}: cannot be read: Is a directory"


def test_byte_order_mark_and_windows_line_ends_are_read(path: Path) -> None:
    text = yaml.safe_dump(SEARCH, sort_keys=False)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert load_search(path) == SearchSpec.model_validate(SEARCH)
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("max_steps: 12", "max_steps: 0").replace("\n", "\r\n").encode())
    line = text.splitlines().index("  max_steps: 12") + 1
    assert problem(path) == f"{path}:{line}: finetune.max_steps: must be greater than or equal to 1, got 0"


# ------------------------------------------------------------------------ anchors and merging

MERGED = """\
name: merged
finetune:
  model: &model
    family: conv_ae
    channels: 8
  data: {source: digits, resolution: 16}
  losses: {mse: 1}
  optimizer: {lr: 1e-3}
  max_steps: 40
search_space:
  optimizer.lr: &lr {low: 1e-4, high: 1e-2}
  losses.mse:
    <<: *lr
    high: 2
  losses.tv: {<<: *lr, low: 0}
objective: {metric: val/psnr, direction: maximize}
"""


def test_anchors_and_merge_keys_work(path: Path) -> None:
    path.write_text(MERGED)
    space = load_search(path).search_space
    assert space["losses.mse"] == Range(low=1e-4, high=2.0)
    assert space["losses.tv"] == Range(low=0.0, high=1e-2)


def test_a_fault_that_was_merged_in_has_the_line_where_it_stands(path: Path) -> None:
    path.write_text(MERGED.replace("&lr {low: 1e-4,", "&lr {lag: 1, low: 1e-4,"))
    with pytest.raises(SpecError) as caught:
        load_search(path)
    assert [line.partition(": unknown")[0] for line in caught.value.problems] == [
        f"{path}:11: search_space.{key}.lag" for key in ("optimizer.lr", "losses.mse", "losses.tv")
    ]


def test_a_key_over_a_merged_one_is_not_given_twice(path: Path) -> None:
    path.write_text(MERGED.replace("    high: 2\n", "    high: 2\n    high: 3\n"))
    assert problem(path) == f"{path}:15: search_space.losses.mse.high: key given twice"
