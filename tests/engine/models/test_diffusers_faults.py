"""Folders that are not as diffusers saves them: loaded where that is exact, else one message that names the place."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_diffusers import FOLDERS, as_compvis, save_tiny_models
from torch import Tensor

from ftae.engine.models.diffusers_loading import load_network
from ftae.engine.models.pretrained.model_folder import DIFFUSERS
from ftae.errors import FtaeError

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diffusers")
    save_tiny_models(folder)
    return folder


@pytest.fixture(params=FOLDERS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(family: str, home: Path, tmp_path: Path) -> Path:
    """A copy of the family's model."""
    return Path(shutil.copytree(home / FOLDERS[family], tmp_path / "model-to-load"))


@pytest.fixture
def kl(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "kl", tmp_path / "kl"))


def refused(
    path: Path, family: str = "autoencoder_kl", subfolder: str | None = None, *, named: str | None = None
) -> str:
    """The one message that loading ends in; it names the place."""
    with pytest.raises(FtaeError) as caught:
        load_network(family, str(path), subfolder)
    message = str(caught.value)
    assert "\n" not in message
    assert (named or str(path)) in message
    assert len(message) < 700
    return message


def loaded(path: Path, family: str = "autoencoder_kl", subfolder: str | None = None) -> dict[str, Tensor]:
    net = load_network(family, str(path), subfolder)
    assert not net.training
    state: dict[str, Tensor] = net.state_dict()
    assert {tensor.dtype for tensor in state.values() if tensor.ndim} == {torch.float32}
    return state


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


def config_with(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def rewritten(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()  # its pages are mapped
    save_file(change(state), folder / WEIGHTS, {"format": "pt"})


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def first(state: dict[str, Tensor]) -> str:
    """The first tensor, but for a count of batches."""
    return next(name for name, tensor in state.items() if tensor.ndim)


def first_grown(state: dict[str, Tensor]) -> dict[str, Tensor]:
    name = first(state)
    return state | {name: torch.cat([state[name]] * 2).contiguous()}


def first_infinite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return state | {first(state): torch.full_like(state[first(state)], torch.nan)}


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated weights": (cut, "is damaged or cut short"),
    "weights of other sizes": (lambda f: rewritten(f, first_grown), "1 of another shape or type"),
    "weights that lack one": (
        lambda f: rewritten(f, lambda s: {n: t for n, t in s.items() if n != first(s)}),
        "1 missing",
    ),
    "weights that are not finite": (lambda f: rewritten(f, first_infinite), "holds values that are not finite"),
    "weights of something else": (lambda f: rewritten(f, lambda s: {"w": torch.ones(1)}), "1 unexpected (w)"),
    "empty weights": (lambda f: (f / WEIGHTS).write_bytes(b""), "is empty"),
    "git-lfs": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "run 'git lfs pull'",
    ),
    "web page": (lambda f: (f / WEIGHTS).write_text("<html>"), "begins with '<html>'"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "has no weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json; it holds diffusion_pytorch_model"),
    "config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "binary config": (lambda f: (f / "config.json").write_bytes(b"\xff\x00\xfe"), "is not JSON"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[]"), "must hold a mapping, got list"),
    "config of odd values": (lambda f: config_with(f, latent_channels="x"), "describes no"),
    "class that is no name": (lambda f: config_with(f, _class_name=["x"]), "holds a ['x']; ftae tunes AutoencoderKL,"),
    "class of another kind": (lambda f: config_with(f, _class_name="UNet2DModel"), "holds a UNet2DModel; ftae tunes"),
    "empty folder": (empty, "has no config.json; it is empty"),
    "a file": (a_file_instead, "is no file of weights: it begins with 'a file'"),
}


def test_every_diffusers_family_is_under_contract() -> None:
    assert FOLDERS.keys() == DIFFUSERS.keys()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_message(fault: str, family: str, folder: Path) -> None:
    damage, expected = FAULTS[fault]
    damage(folder)
    assert expected in refused(folder, family)


@pytest.mark.parametrize("other", FOLDERS)
def test_the_right_family_is_named(other: str, family: str, folder: Path) -> None:
    if other == family:
        assert loaded(folder, family)
    else:
        assert f"{DIFFUSERS[family]}: set model.family to {family}, not {other}" in refused(folder, other)


def test_messages_of_diffusers_are_not_shown(family: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    config_with(folder, an_option_of_a_later_version=3)
    assert loaded(folder, family)
    assert capfd.readouterr() == ("", "")


WRITTEN: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "DataParallel": (lambda s: {f"module.{name}": t for name, t in s.items()}, "without the prefix 'module.'"),
    "torch.compile": (lambda s: {f"_orig_mod.{name}": t for name, t in s.items()}, "without the prefix '_orig_mod.'"),
    "more than the model has": (lambda s: s | {"more": torch.ones(1)}, "the model does not use 1 tensors: more"),
}


@pytest.mark.parametrize("how", WRITTEN)
def test_weights_that_fit_exactly_are_loaded_with_a_warning(
    how: str, family: str, folder: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, expected = WRITTEN[how]
    rewritten(folder, change)
    assert same(loaded(folder, family), loaded(home / FOLDERS[family], family))
    (line,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert expected in line


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_fp32(dtype: torch.dtype, kl: Path, home: Path) -> None:
    rewritten(kl, lambda state: {name: t.to(dtype) for name, t in state.items()})
    before = loaded(home / "kl")
    assert all(torch.equal(t, before[name].to(dtype).float()) for name, t in loaded(kl).items())


def test_a_file_of_another_format_is_read_by_its_content(
    kl: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = load_file(kl / WEIGHTS)
    (kl / WEIGHTS).unlink()
    torch.save({"state_dict": state, "epoch": 3}, kl / WEIGHTS)
    assert same(loaded(kl), loaded(home / "kl"))
    assert [record.message.endswith("is read under 'state_dict'") for record in caplog.records] == [True]


def test_weights_in_another_form_leave_the_random_generators_alone(kl: Path) -> None:
    rewritten(kl, lambda state: {f"module.{name}": t for name, t in state.items()})
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    loaded(kl)
    assert torch.equal(torch.rand(1), expected)


# -------------------------------------------------------------------------------- names of the authors, single files


def test_attention_weights_of_1x1_convolutions(kl: Path, home: Path) -> None:
    rewritten(kl, lambda s: {n: t[:, :, None, None] if "attentions" in n and t.ndim == 2 else t for n, t in s.items()})
    assert same(loaded(kl), loaded(home / "kl"))


def test_names_of_latent_diffusion_are_converted(kl: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = load_file(kl / WEIGHTS)
    rewritten(kl, as_compvis)
    save_file(as_compvis(state), kl / "vae.safetensors")
    inside = {f"first_stage_model.{name}": t for name, t in as_compvis(state).items()}
    torch.save({"state_dict": inside | {"model.diffusion_model.w": torch.ones(1)}}, kl / "whole.ckpt")
    for path in (kl, kl / "vae.safetensors", kl / "whole.ckpt"):
        assert same(loaded(path), loaded(home / "kl"))
    assert [record.message.endswith("names of another library") for record in caplog.records] == [True] * 3


def test_tensors_missing_in_those_names_are_not_left_random(kl: Path) -> None:
    rewritten(kl, lambda state: dict(list(as_compvis(state).items())[1:]))
    assert "does not hold a state dict of the model" in refused(kl)


def test_a_single_file_is_built_from_the_config_beside_it(family: str, folder: Path, home: Path) -> None:
    torch.save({"state_dict": load_file(folder / WEIGHTS)}, folder / "best.ckpt")
    for name in (WEIGHTS, "best.ckpt"):
        assert same(loaded(folder / name, family), loaded(home / FOLDERS[family], family))


@pytest.mark.parametrize("bare", [True, False])
def test_a_single_file_whose_shapes_say_too_little_needs_a_config(
    bare: bool, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(home / "dc" / WEIGHTS, tmp_path / "one.safetensors")
    monkeypatch.chdir(tmp_path if bare else tmp_path.parent)
    path = Path("one.safetensors" if bare else f"{tmp_path.name}/one.safetensors")
    message = refused(path, "autoencoder_dc")
    assert f"AutoencoderDC.from_single_file('{path}').save_pretrained('FOLDER')" in message
    assert "from_single_file" not in refused(path, "autoencoder_tiny")
    assert "has no effect" in refused(path, subfolder="vae")


# ------------------------------------------------------------------------------------- variants, shards, pipelines


def variant_of(folder: Path, variant: str) -> Path:
    return folder / f"diffusion_pytorch_model.{variant}.safetensors"


def test_the_only_variant_is_loaded(family: str, folder: Path, home: Path) -> None:
    (folder / WEIGHTS).rename(variant_of(folder, "fp16"))
    assert same(loaded(folder, family), loaded(home / FOLDERS[family], family))


def test_the_plain_variant_is_loaded_or_all_variants_are_named(kl: Path, home: Path) -> None:
    for variant in ("fp16", "non_ema"):
        shutil.copy(kl / WEIGHTS, variant_of(kl, variant))
        rewritten(kl, lambda state: {name: t + 1 for name, t in state.items()})
    assert not same(loaded(kl), loaded(home / "kl"))
    (kl / WEIGHTS).unlink()
    message = refused(kl)
    assert "fp16.safetensors, diffusion_pytorch_model.non_ema.safetensors. Leave one of them there" in message


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_model_in_parts(variant: str | None, home: Path, tmp_path: Path) -> None:
    net = load_network("autoencoder_kl", str(home / "kl"), None)
    net.save_pretrained(tmp_path / "parts", max_shard_size="20KB", variant=variant)
    assert same(loaded(tmp_path / "parts"), net.state_dict())
    next((tmp_path / "parts").glob("*00002-of-*")).unlink()
    assert "lacks parts of the weights: 2 of those" in refused(tmp_path / "parts")


@pytest.fixture
def pipeline(home: Path, tmp_path: Path) -> Path:
    pipeline = tmp_path / "pipe"
    shutil.copytree(home / "kl", pipeline / "vae")
    (pipeline / "unet").mkdir()
    (pipeline / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (pipeline / "scheduler").mkdir()
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return pipeline


def test_a_whole_pipeline_names_its_parts(pipeline: Path, home: Path) -> None:
    assert "is a whole pipeline: set model.subfolder to vae" in refused(pipeline)
    assert same(loaded(pipeline, subfolder="vae"), loaded(home / "kl"))
    assert "there are unet, vae, did you mean 'vae'?" in refused(pipeline, subfolder="vea")
    assert "holds a UNet2DConditionModel" in refused(pipeline, subfolder="unet", named=str(pipeline / "unet"))
    assert "set model.family to autoencoder_kl" in refused(pipeline, "vq_model", "vae")
    shutil.rmtree(pipeline / "vae")
    assert "it has no autoencoder that ftae knows" in refused(pipeline)


def test_a_subfolder_of_no_pipeline_is_refused(kl: Path) -> None:
    assert "leave it out" in refused(kl, subfolder="vae")


def test_a_builtin_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "ftae_model.json").write_text('{"family": "conv_vae"}')
    assert "set model.family to conv_vae" in refused(tmp_path)


# ------------------------------------------------------------------------------------------- what is not there


def test_a_misspelt_path_is_suggested_at_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("ftae.engine.models.pretrained.hub._info", no_network)
    shutil.copytree(home / "kl", tmp_path / "models" / "my-vae")
    monkeypatch.chdir(tmp_path)
    for name in ("models/my-vea", "modles/my-vae"):
        assert f"there is no folder '{name}' here, did you mean 'models/my-vae'?" in refused(Path(name))
    assert "there is no folder 'models/other' here" in refused(Path("models/other"))
    assert "neither an existing folder nor a hub id (owner/name), did you mean 'models'?" in refused(Path("modles"))
    for name in ("/nowhere/at/all", "../x/y", "~/nothing", "a/b/c", "some/vae.safetensors"):
        assert "neither an existing folder nor a hub id" in refused(Path(name))
