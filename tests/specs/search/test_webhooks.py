"""Variables that hold the URLs of webhooks, and that no URL gets into a file or a message."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import search_dict, search_spec

from ftae.errors import SpecError
from ftae.specs.files import load_search
from ftae.specs.search.lint import warnings
from ftae.specs.search.webhooks import webhook_fault

URL = "https://hooks.example.org/services/hush"


@pytest.mark.parametrize(
    ("notify", "message"),
    [
        ([URL], "search.notify.0: must be the name of a variable, not a URL, which is a secret"),
        (["FTAE_WEBHOOK", f"{URL}?token=hush"], "search.notify.1: must be the name of a variable, not a URL"),
        (["$FTAE_WEBHOOK"], "search.notify.0: must be the name of a variable"),
        (URL, "search.notify: must be a list of names of environment variables"),
        ({"hush": URL}, "search.notify: must be a list of names of environment variables"),
        (["A", "A"], "search.notify.1: names a variable twice"),
        (list("ABCDEF"), "search.notify: must name at most 5 variables, got 6"),
    ],
)
def test_what_is_no_list_of_variables_is_refused(notify: Any, message: str, tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_dict(**{"search.notify": notify})))
    with pytest.raises(SpecError) as in_file:
        load_search(file)
    file.write_text(yaml.safe_dump(search_dict()))
    with pytest.raises(SpecError) as in_override:
        load_search(file, [f"search.notify={yaml.safe_dump(notify, default_flow_style=True).strip()}"])
    for error in (in_file, in_override):
        assert message in str(error.value)
        assert "services" not in str(error.value)
        assert "token" not in str(error.value)


def test_a_whole_section_repeats_no_url(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(yaml.safe_dump(search_dict()))
    with pytest.raises(SpecError, match="must be the name of a variable") as refusal:
        load_search(file, [f"search={{notify: ['{URL}']}}"])
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        (None, "the variable HOOK is not set"),
        ("", "the variable HOOK is not set"),
        ("hush", "the variable HOOK must hold a URL that begins with https://"),
        ("ftp://hush", "the variable HOOK must hold a URL that begins with https://"),
        ("http://example.org/hush", "the variable HOOK must hold a URL that begins with https://"),
        ("https://[hush", "the variable HOOK does not hold a URL"),
        ("https://example.org:hush/", "the variable HOOK does not hold a URL"),
        (URL, None),
        ("http://127.0.0.1:80/hush", None),
        ("http://[::1]/hush", None),
    ],
)
def test_a_variable_holds_an_address_that_keeps_its_secret(value: str | None, fault: str | None) -> None:
    found = webhook_fault("HOOK", {} if value is None else {"HOOK": value})
    assert (found or "").startswith(fault or "")
    assert (found is None) == (fault is None)
    assert "hush" not in (found or "")


def test_a_variable_that_this_machine_lacks_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = search_spec(**{"search.notify": ["FTAE_WEBHOOK"]})
    monkeypatch.delenv("FTAE_WEBHOOK", raising=False)
    [line] = warnings(spec)
    assert line == (
        "search.notify posts nothing from this machine: the variable FTAE_WEBHOOK is not set; on a cluster, the head "
        "node needs it"
    )
    monkeypatch.setenv("FTAE_WEBHOOK", URL)
    assert warnings(spec) == []
