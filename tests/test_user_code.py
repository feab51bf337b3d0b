"""Code that a file names: it runs only where it is allowed, and a wrong name is one message."""

import sys
from pathlib import Path

import pytest

from ftae.errors import FtaeError
from ftae.user_code import ALLOW_CODE, import_attr


def test_an_attribute_is_imported_or_the_reason_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lookup_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("answer = 42\n")
    (package / "broken.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert import_attr("lookup_package.models:answer") == 42
        with pytest.raises(FtaeError, match=r"'lookup_package\.models' has no attribute 'question'"):
            import_attr("lookup_package.models:question")
        with pytest.raises(
            FtaeError,
            match=r"cannot import lookup_package\.broken: ModuleNotFoundError: .*no_such_dependency' \(broken\.py:1\)",
        ):
            import_attr("lookup_package.broken:answer")
    finally:
        for name in [name for name in sys.modules if name.startswith("lookup_package")]:
            del sys.modules[name]


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(FtaeError) as caught:
        import_attr("no_such_module.at_all:Net")
    assert str(caught.value) == (
        "cannot import 'no_such_module.at_all' of 'no_such_module.at_all:Net': No module named 'no_such_module'. "
        "The module must be importable from the current folder or installed on every node"
    )


def test_code_runs_only_where_it_was_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "foreign_code.py").write_text("from pathlib import Path; Path('ran').touch(); Net = dict")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(ALLOW_CODE)
    with pytest.raises(FtaeError, match=r"'foreign_code:Net' names code, which runs only if you allow it"):
        import_attr("foreign_code:Net")
    assert not (tmp_path / "ran").exists()
    monkeypatch.setenv(ALLOW_CODE, "1")
    assert import_attr("foreign_code:Net") is dict
    assert (tmp_path / "ran").exists()
