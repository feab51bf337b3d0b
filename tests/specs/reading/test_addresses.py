"""No secret in an address gets into a file, or into a message about it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ftae.errors import SpecError
from ftae.specs.files import load_search
from ftae.specs.reading.names import redacted, secret_problem

# Every address holds the secret hush in another form.
SECRETS = [
    "https://user:hush@host/x",
    "HTTPS://user:hush@host",
    "https://hush@host",
    "https://user:pa/hush@host",
    "https://user:pa@hush@host:5000",
    "https:\\\\user:hush@host",
    "https:/user:hush@host",
    "//user:hush@host/share",
    "http://host/x?token=hush",
    "http://host/x?ToKeN=hush&b=1",
    "http://host/x?hush",
    "http://host/x#hush",
    "http://host/;password=hush",
    "http://host/token=hush/x",
    "https://bucket.s3.amazonaws.com/k?X-Amz-Credential=a&X-Amz-Signature=hush",
    "https://account.blob.core.windows.net/c?sv=2024&sig=hush",
    "https://host/%3Ftoken=hush",
    "https://user%3Ahush@host",
    "https://user:hush%40host",
    "https%3A//user:hush@host",
    "https%3A%2F%2Fuser%3Ahush%40host",
    "https%253A%252F%252Fuser%253Ahush%2540host",
    " https://user:hush@host ",
    "https://user:hush@\thost",
    "file://user:hush@host/x",
    "sqlite://user:hush@host/x",
    "s3://key:hush@bucket/prefix",
    "s3://hush@bucket/prefix",
    "s3://bucket/prefix?secret=hush",
    "gs://hush@bucket",
    "simplecache::s3://key:hush@bucket",
    "sftp://user:hush@host/p",
    "sftp://user%3Ahush@host/p",
    "ssh://user:hush@host/p",
    "ftp://user:hush@host/p",
    "abfs://container:hush@account/x",
    "postgresql://user:hush@host/db",
    "postgresql+psycopg://user:hush@host/db",
    "postgresql+psycopg://h/db?user=u&password=hush",
    "postgresql://h/db?user=u&sslpassword=hush",
    "postgresql://h/db?options=-c%20x=hush",
    "postgresql://h/db?host=u:hush@h",
    "POSTGRESQL://h/db?PASSWORD=hush",
    "mysql+pymysql://user:hu/hush@h/db",
    "mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhush",
    "sqlite:///x.db?key=hush",
    "user:hush@host:/folder",
    "user:hush@host/folder",
    "user:hush@host",
]
HARMLESS = [
    "https://host:5000/mlflow",
    "http://10.0.0.1",
    "http://[::1]:5000/x",
    "s3://bucket/prefix/a@b",
    "s3://bucket/day=1/x",
    "gs://bucket/x%40y",
    "sftp://me@host/p",
    "ssh://me@host:22/p",
    "abfs://container@account.dfs.core.windows.net/x",
    "postgresql://me@host/db",
    "postgresql+psycopg://host/db?sslmode=require&user=me&host=/var/run/postgresql",
    "mysql://host/db?charset=utf8mb4",
    "sqlite:////data/a#b/mlflow.db",
    "searches",
    "/data/a:b/c@d",
    "C:\\data\\images",
    "C:/data@home/x",
    "50%/a:b",
    "org/model@main",
    "package.module:attr",
    "val/psnr >= 30",
    "file:///data/a@b/x",
]


@pytest.mark.parametrize("address", SECRETS)
def test_a_possible_secret_is_refused_and_not_repeated(address: str) -> None:
    reason = secret_problem(address)
    assert reason is not None
    assert reason.startswith("must not hold")
    assert "hush" not in reason
    assert "hush" not in redacted(f"cannot open {address!r}: {address}", address)


@pytest.mark.parametrize("address", HARMLESS)
def test_an_address_without_secrets_is_accepted_and_repeated(address: str) -> None:
    assert secret_problem(address) is None
    assert redacted(f"at {address} there is nothing", address) == f"at {address} there is nothing"


@pytest.mark.parametrize("address", [a for a in SECRETS if "://" in a])
def test_an_address_in_a_text_is_redacted(address: str) -> None:
    assert "hush" not in redacted(f"cannot open '{address}', it is away")


RUN: dict[str, Any] = {
    "model": {"family": "conv_ae", "pretrained": None},
    "data": {"source": "image_folder", "train": "images", "val": 0.2, "resolution": 16},
    "perceptual": {"net": "vgg16", "weights": "vgg.safetensors"},
    "discriminator": {},
    "losses": {"mse": 1.0},
    "optimizer": {"lr": 1e-3},
    "max_steps": 10,
    "metrics": ["psnr"],
}
SEARCH: dict[str, Any] = {
    "name": "a",
    "finetune": RUN,
    "search_space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}},
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "search": {"storage": "searches"},
    "tracking": {"uri": "http://there", "experiment": "e"},
}
CODE = {"family": "m:f", "image_range": "0..1", "kwargs": {"deep": [{"url": "https://host"}]}}
PLACES = [
    "tracking.uri",
    "tracking.experiment",
    "search.storage",
    "finetune.model.pretrained",
    "finetune.data.train",
    "finetune.data.val",
    "finetune.perceptual.weights",
    "finetune.discriminator.pretrained",
    "search_space.model.pretrained",
]


def file_with(place: str, address: str) -> dict[str, Any]:
    if place.startswith("search_space"):
        space = {"model.pretrained": {"choices": [None, address]}}
        return {**SEARCH, "search_space": space}

    def put(section: dict[str, Any], keys: list[str]) -> dict[str, Any]:
        first, *rest = keys
        return {**section, first: put(section[first], rest) if rest else address}

    return put(SEARCH, place.split("."))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("address", SECRETS)
def test_no_field_of_a_file_takes_a_secret(tmp_path: Path, place: str, address: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(file_with(place, address)))
    with pytest.raises(SpecError) as refusal:
        load_search(path)
    assert "must not hold" in str(refusal.value)
    assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("address", SECRETS)
def test_neither_an_override_nor_an_argument_of_user_code_repeats_a_secret(tmp_path: Path, address: str) -> None:
    path = tmp_path / "search.yaml"
    model = {"family": "m:f", "image_range": "0..1", "kwargs": {"deep": [{"url": address}]}}
    path.write_text(yaml.safe_dump({**SEARCH, "finetune": {**RUN, "model": model}}))
    for overrides in ((), (f"storage={address}",), (f"search.storage='{address}'",), (f"search.num_trials={address}",)):
        with pytest.raises(SpecError) as refusal:
            load_search(path, overrides)
        assert "model.kwargs.deep: must not hold" in str(refusal.value)
        assert "hush" not in str(refusal.value)


@pytest.mark.parametrize("uri", ["http://mlflow:5000", "postgresql://me@db/mlflow", "sqlite:///mlflow.db"])
def test_a_tracking_address_without_secrets_is_accepted(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(file_with("tracking.uri", uri)))
    assert load_search(path).tracking.uri == uri
