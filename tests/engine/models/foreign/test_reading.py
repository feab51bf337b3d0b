"""Files that could run code, or are no weights: refused in one message, and nothing in them runs."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_weights import small_stylegan2, write_nvidia
from torch import Tensor

from ftae.engine.models.foreign.convert import convert
from ftae.errors import FtaeError


class Calls:
    """Pickled, it is a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def refused(content: bytes, folder: Path) -> str:
    """The message with which a file of this content is refused. It may not have run anything."""
    file = folder / "x.pkl"
    file.write_bytes(content)
    with pytest.raises(FtaeError) as error:
        convert(file, folder / "out", licence="x")
    assert [path.name for path in folder.iterdir()] == ["x.pkl"]  # each call would make a folder
    assert str(error.value).startswith(f"FILE: {file}")
    assert "\n" not in str(error.value)
    return str(error.value)


def calling(folder: Path, function: Callable[..., Any]) -> Calls:
    made = {os.mkdir: str(folder / "ran"), os.system: f"mkdir {folder}/ran"}
    return Calls(function, made.get(function, f"__import__('os').mkdir({str(folder / 'ran')!r})"))


@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (getattr, "builtins.getattr")],
)
def test_a_pickle_that_names_anything_else_is_refused(function: Callable[..., Any], name: str, tmp_path: Path) -> None:
    message = refused(pickle.dumps({"G_ema": [calling(tmp_path, function)]}), tmp_path)
    assert f"it asks for {name}, which could run code" in message


def test_a_nested_file_of_torch_that_names_anything_else_is_refused(tmp_path: Path) -> None:
    torch.save(calling(tmp_path, os.system), tmp_path / "inner", _use_new_zipfile_serialization=False)
    inner = (tmp_path / "inner").read_bytes()
    (tmp_path / "inner").unlink()
    outer = pickle.dumps(Calls(torch.storage._load_from_bytes, inner))
    assert "it asks for posix.system, which could run code" in refused(outer, tmp_path)


def test_a_checkpoint_with_other_objects_is_refused(tmp_path: Path) -> None:
    torch.save({"g_ema": {}, "args": calling(tmp_path, os.system)}, tmp_path / "inner")
    content = (tmp_path / "inner").read_bytes()
    (tmp_path / "inner").unlink()
    assert "posix.system" in refused(content, tmp_path)


def test_a_pickle_changes_nothing_of_what_it_gets(tmp_path: Path) -> None:
    """It may set attributes of an object: those of a function or class would outlive the file."""
    for name in (b"torch._utils\n_rebuild_parameter", b"dnnlib.tflib.network\nNetwork", b"numpy\ndtype"):
        refused(b"\x80\x02c" + name + b"\nN}U\x0c__defaults__K\x01s\x86b.", tmp_path)
        (tmp_path / "x.pkl").unlink()
    from ftae.engine.models.foreign import reading

    assert not hasattr(reading.Kept, "__defaults__")
    assert reading._rebuild_parameter.__defaults__ is None


def pickle_parts(tensor: Tensor) -> Any:
    """The function and the arguments that a pickle of ``tensor`` holds."""
    function, arguments, *_ = tensor.__reduce_ex__(2)
    return function, arguments


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    _, (storage, *_) = pickle_parts(torch.zeros(2))
    call = Calls(torch._utils._rebuild_tensor_v2, storage, 1, (1000,), (1,), False, {})
    assert "out of bounds" in refused(pickle.dumps({"G_ema": call}), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<html>not found</html>", "is no file of weights: it begins with '<html>not found</htm'"),
        (b"\x80\x04\x95\x00", "is damaged or cut short"),
        (pickle.dumps([1, 2]), "it holds a list; ftae reads"),
        (pickle.dumps({"G_ema": None}), "it holds a dict, with G_ema; ftae reads"),
    ],
)
def test_what_is_no_model_has_one_message(content: bytes, message: str, tmp_path: Path) -> None:
    assert message in refused(content, tmp_path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    content = (tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").unlink()
    assert "an archive that torch.save did not write" in refused(content, tmp_path)


def test_a_pickle_that_is_cut_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nvidia(tmp_path / "whole", {"G_ema": small_stylegan2(0)}, monkeypatch)
    content = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    assert "is damaged or cut short" in refused(content[: len(content) // 2], tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match=r"FILE: .*nowhere.pkl cannot be read: No such file"):
        convert(tmp_path / "nowhere.pkl", tmp_path / "out", licence="x")
