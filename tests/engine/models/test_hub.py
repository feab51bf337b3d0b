"""Models on the hub: pinned to a commit when a run begins, and loaded from the cache after that."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import run_spec
from hub_server import Hub, succeeded
from production_runs import untracked
from safetensors.torch import load_file, save_file
from tiny_diffusers import save_tiny_models

from ftae.engine.models import families as build
from ftae.engine.models.families import build_model
from ftae.engine.models.pretrained.hub import pinned, pinned_id
from ftae.engine.models.pretrained.model_folder import HubId, hub_id, model_digest
from ftae.engine.training.model_reuse import ModelReuse
from ftae.errors import FtaeError
from ftae.results.search_record import SearchRecord
from ftae.search.production import train
from ftae.search.provenance import pinned as pinned_search
from ftae.specs.finetune.run import FinetuneSpec
from ftae.specs.search.search import SearchSpec

OLD, NEW = "a" * 40, "b" * 40
WEIGHTS = "diffusion_pytorch_model.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def commits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two commits of a pipeline; in the second, all weights of the VAE are one larger."""
    home = tmp_path_factory.mktemp("hub")
    save_tiny_models(home)
    for commit in (OLD, NEW):
        shutil.copytree(home / "kl", home / commit / "vae")
        (home / commit / "unet").mkdir()
        (home / commit / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        (home / commit / "unet" / WEIGHTS).write_bytes(bytes(1000))
        (home / commit / "model_index.json").write_text("{}")
    state = {name: tensor + 1 for name, tensor in load_file(home / "kl" / WEIGHTS).items()}
    save_file(state, home / NEW / "vae" / WEIGHTS, {"format": "pt"})
    return {commit: home / commit for commit in (OLD, NEW)}


@pytest.fixture
def cache(commits: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds both commits, of which main is the old one; there is no network."""
    folder = tmp_path / "hub" / "models--owner--name"
    for commit, content in commits.items():
        shutil.copytree(content, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(OLD)
    (folder / "refs" / "next").write_text(NEW)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("FTAE_CACHE", str(tmp_path / "ftae"))
    monkeypatch.chdir(tmp_path)
    return folder


def spec_of(pretrained: str = "owner/name", **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": {"family": "autoencoder_kl", "pretrained": pretrained, "subfolder": "vae"},
        "data": {"source": "digits", "resolution": 16, "color": "rgb", "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-4},
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["mse"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


def bias(spec: FinetuneSpec) -> list[float]:
    found: list[float] = build_model(spec, None).state_dict()["net.encoder.conv_in.bias"].tolist()
    return found


def test_hub_ids_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "it-is").mkdir()
    assert hub_id("stabilityai/sd-vae-ft-mse") == HubId("stabilityai/sd-vae-ft-mse", None)
    assert hub_id("a/b@refs/pr/3") == HubId("a/b", "refs/pr/3")
    assert hub_id(f"a/b@{OLD}") == HubId("a/b", OLD)
    for other in ("a", "a/b/c", "/a/b", "./a/b", "../b", "~/b", "a/b.safetensors", "a b/c", "a/b@", "here/it-is"):
        assert hub_id(other) is None


def test_a_model_on_the_hub_is_pinned(cache: Path) -> None:
    spec = pinned(spec_of())
    assert spec.model.pretrained == f"owner/name@{OLD}"
    assert model_digest(spec.model) == OLD
    assert pinned(spec) == spec
    assert pinned_id("owner/name@next") == f"owner/name@{NEW}"
    assert model_digest(spec_of().model) is None
    before = bias(spec)
    (cache / "refs" / "main").write_text(NEW)
    assert bias(spec) == before
    assert bias(spec_of()) == pytest.approx([value + 1 for value in before])


def test_a_resumed_run_keeps_its_commit(cache: Path) -> None:
    first = pinned(spec_of()).model.pretrained
    (cache / "refs" / "main").write_text(NEW)
    assert pinned_id("owner/name", [first]) == first
    assert pinned_id("owner/name@main", [first]) == f"owner/name@{NEW}"
    assert pinned_id("owner/name", ["owner/other@" + OLD, None]) == f"owner/name@{NEW}"


def test_models_outside_the_hub_are_not_pinned(cache: Path, commits: dict[str, Path]) -> None:
    for pretrained in (str(commits[OLD]), "nowhere", "/no/folder"):
        assert pinned_id(pretrained) == pretrained
    own = spec_of(model={"family": "conv_vae", "pretrained": "owner/name"})
    assert pinned(own) == own


def test_a_model_that_cannot_be_fetched_is_one_message(cache: Path) -> None:
    for name in ("owner/other", "owner/name@v2"):
        with pytest.raises(FtaeError, match="as a hub id it could not be fetched: HF_HUB_OFFLINE is set") as caught:
            pinned_id(name)
        assert repr(name) in str(caught.value)
        with pytest.raises(FtaeError, match="HF_HUB_OFFLINE is set"):
            build_model(spec_of(name), None)


def test_all_trials_of_a_search_use_one_commit(cache: Path) -> None:
    search: dict[str, Any] = {
        "name": "s",
        "finetune": spec_of().model_dump(mode="json"),
        "search_space": {"model.pretrained": {"choices": ["owner/name", "owner/name@next"]}},
        "objective": {"metric": "val/mse", "direction": "minimize"},
    }
    spec = pinned_search(SearchSpec.model_validate(search), None)
    assert spec.finetune.model.pretrained == f"owner/name@{OLD}"
    assert spec.search_space["model.pretrained"].corners() == (f"owner/name@{OLD}", f"owner/name@{NEW}")
    assert SearchSpec.model_validate(spec.model_dump(mode="json")) == spec
    (cache / "refs" / "main").write_text(NEW)
    search["search_space"] = {"optimizer.lr": {"low": 1e-5, "high": 1e-3}}
    before = SearchRecord(search=spec.model_dump(mode="json"))
    assert pinned_search(SearchSpec.model_validate(search), before).finetune.model == spec.finetune.model
    assert pinned_search(SearchSpec.model_validate(search), None).finetune.model.pretrained == f"owner/name@{NEW}"


def test_a_pinned_model_is_built_once_for_all_trials(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, built = build.build_autoencoder, []

    def counted(model: Any, *args: Any) -> Any:
        built.append(model.pretrained)
        return original(model, *args)

    monkeypatch.setattr(build, "build_autoencoder", counted)
    reuse, spec = ModelReuse(), pinned(spec_of())
    for _ in range(3):
        reuse.model(spec, None, CPU)
    assert built == [spec.model.pretrained]
    for _ in range(2):
        reuse.model(spec_of(), None, CPU)  # it may be another one by now
    assert len(built) == 3


def test_a_production_run_that_is_resumed_keeps_its_commit(cache: Path, tmp_path: Path) -> None:
    spec = untracked("p", spec_of(max_steps=2))
    folders = {"storage": tmp_path, "notify": lambda line: None}
    train(spec, tmp_path / "run", **folders)
    (cache / "refs" / "main").write_text(NEW)
    longer = spec.model_copy(update={"finetune": spec_of(max_steps=3)})
    train(longer, tmp_path / "run", resume=True, **folders)
    assert f"owner/name@{OLD}" in (tmp_path / "run" / "production.yaml").read_text()


# ------------------------------------------------------------------------------------------ over the network

CHILD = """
import hashlib, json, sys
from ftae.engine.models.pretrained.hub import fetched, pinned_id
from ftae.engine.models.pretrained.model_folder import hub_id
from ftae.errors import FtaeError

found = []
for name, subfolder in json.loads(sys.argv[1]):
    try:
        name = pinned_id(name)
        folder = fetched(hub_id(name), name, subfolder)
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        found.append([name, {str(f.relative_to(folder)): hashlib.sha1(f.read_bytes()).hexdigest() for f in files}])
    except FtaeError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def fetch(tmp_path: Path, *models: tuple[str, str | None], **settings: str) -> tuple[list[Any], str]:
    """What a process of its own finds, and its stderr: the hub's settings are read as it is imported."""
    result = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(models)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": os.pathsep.join(sys.path)} | settings,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    found: list[Any] = json.loads(result.stdout)
    return found, result.stderr


def test_only_files_that_are_read_are_fetched_and_only_once(commits: dict[str, Path], tmp_path: Path) -> None:
    names = ("vae/config.json", f"vae/{WEIGHTS}")
    files = {name: hashlib.sha1((commits[OLD] / name).read_bytes()).hexdigest() for name in names}
    vae = ("owner/name", "vae")
    with succeeded(Hub(commits[OLD], OLD)) as hub:
        found, stderr = fetch(tmp_path, vae, ("owner/other", None), HF_ENDPOINT=hub.url)
        assert found[0] == [f"owner/name@{OLD}", files]
        assert found[1].endswith("the hub has no such model, or it is private and HF_TOKEN is not set")
        assert stderr == f"fetching owner/name@{OLD} from the hub\n"
        hub.move(commits[NEW], NEW)
        hub.asked.clear()
        found, stderr = fetch(tmp_path, (f"owner/name@{OLD}", "vae"), HF_ENDPOINT=hub.url)
        assert found == [[f"owner/name@{OLD}", files]]
        assert (stderr, hub.asked) == ("", [])
    found, stderr = fetch(tmp_path, vae, ("owner/x", None), HF_ENDPOINT="http://127.0.0.1:9")
    assert found[0] == [f"owner/name@{OLD}", files]
    assert "there is no folder 'owner/x' here, and as a hub id it could not be fetched: ConnectError" in found[1]
    assert stderr == ""


def test_only_the_configurations_of_a_whole_pipeline_are_fetched(commits: dict[str, Path], tmp_path: Path) -> None:
    with succeeded(Hub(commits[OLD], OLD)) as hub:
        (found,), _ = fetch(tmp_path, ("owner/name", None), HF_ENDPOINT=hub.url)
    assert found[1].keys() == {"model_index.json", "unet/config.json", "vae/config.json"}
