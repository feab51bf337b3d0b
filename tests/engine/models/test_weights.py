"""State dicts of other programs: which are loaded, which are refused, and with what message."""

import argparse
import json
import logging
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ftae.engine.models.families import build_model
from ftae.engine.models.pretrained.model_folder import model_digest, weights_digest
from ftae.engine.models.pretrained.weights import load_state
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

State = dict[str, Tensor]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.decoder = nn.Linear(4, 3)


def weights() -> State:
    torch.manual_seed(7)
    return Net().state_dict()


def wrapped(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


LEFT = [
    ("as it stands", lambda s: s, ""),
    ("DataParallel", lambda s: wrapped("module.", s), "without the prefix 'module.'"),
    ("torch.compile", lambda s: wrapped("_orig_mod.", s), "without the prefix '_orig_mod.'"),
    ("both", lambda s: wrapped("module._orig_mod.", s), "without the prefix 'module._orig_mod.'"),
    ("a compiled part", lambda s: {n.replace("encoder.", "encoder._orig_mod."): t for n, t in s.items()}, "_orig_mod."),
    ("an attribute", lambda s: wrapped("net.", s) | {"loss.w": torch.ones(1)}, "leaving out 1 entries without it"),
    ("AveragedModel", lambda s: wrapped("module.", s) | {"n_averaged": torch.tensor(3)}, "'module.'"),
    ("state_dict", lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"state": {0: {}}}}, "under 'state_dict'"),
    ("model_state_dict", lambda s: {"model_state_dict": s}, "under 'model_state_dict'"),
    ("Lightning", lambda s: {"state_dict": wrapped("model.", s)}, "under 'state_dict', without the prefix 'model.'"),
    ("two deep", lambda s: {"checkpoint": {"model": s}}, "under 'checkpoint', under 'model'"),
    ("half", lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()}, ""),
    ("double", lambda s: {n: t.double() if t.is_floating_point() else t for n, t in s.items()}, ""),
    ("1x1", lambda s: s | {"decoder.weight": s["decoder.weight"][:, :, None, None]}, "1 convolutions of 1x1"),
]


@pytest.mark.parametrize(("left", "expected"), [pytest.param(*case[1:], id=case[0]) for case in LEFT])
def test_a_wrapped_state_dict_is_loaded_where_it_fits(
    left: Any, expected: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(left(weights()), tmp_path / "w.pt")
    net = Net()
    load_state(net, tmp_path / "w.pt")
    for name, tensor in weights().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, atol=1e-3, rtol=1e-3)
    lines = [record.message for record in caplog.records]
    assert len(lines) == bool(expected)
    assert all(expected in line and str(tmp_path) in line for line in lines)


def test_batch_norm_of_an_old_file_is_loaded(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in weights().items() if "num_batches" not in name}
    save_file(state, tmp_path / "w.safetensors")
    net = Net()
    load_state(net, tmp_path / "w.safetensors")
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    live, average = weights(), {name: tensor + 1 for name, tensor in weights().items()}
    for content in ({"model": live, "ema": average}, {"params": live, "params_ema": average}):
        torch.save(content, tmp_path / "w.pt")
        net = Net()
        load_state(net, tmp_path / "w.pt")
        assert torch.equal(net.decoder.bias, average["decoder.bias"])


def test_a_note_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(wrapped("module.", weights()), tmp_path / "w.pt")
    for _ in range(3):
        load_state(Net(), tmp_path / "w.pt")
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.WARNING


def lacking(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name != "decoder.bias"}


MISFITS = [
    (lacking, "1 missing (decoder.bias)"),
    (lambda s: s | {"more": torch.ones(1)}, "1 unexpected (more)"),
    (
        lambda s: s | {"decoder.bias": torch.ones(5)},
        "1 of another shape or type (decoder.bias is (5,), the model wants (3,))",
    ),
    (lambda s: s | {"decoder.bias": torch.ones(3, dtype=torch.int8)}, "decoder.bias is int8, the model wants float32"),
    (lambda s: s | {"decoder.bias": "text"}, "decoder.bias is a str"),
    (
        lambda s: {"state_dict": wrapped("module.", lacking(s))},
        "1 missing (decoder.bias); that is when it is read under 'state_dict', without the prefix 'module.'",
    ),
    (lambda s: nn.Linear(2, 2).state_dict(), "8 missing (encoder.0.weight, encoder.0.bias, encoder.1.weight, ...), 2 "),
    (lambda s: {}, "8 missing"),
]


@pytest.mark.parametrize(("made", "expected"), MISFITS)
def test_a_misfit_is_one_line(made: Any, expected: str, tmp_path: Path) -> None:
    torch.save(made(weights()), tmp_path / "w.pt")
    message = refused(tmp_path / "w.pt")
    assert expected in message
    assert len(message) < 400


def refused(path: Path) -> str:
    """The one line that loading ``path`` ends in."""
    with pytest.raises(FtaeError) as caught:
        load_state(Net(), path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert "weights_only" not in message
    return message


FOREIGN = {
    "whole module": (Net(), "test_weights.Net, "),
    "namespace": ({"state_dict": weights(), "args": argparse.Namespace(lr=1)}, "(argparse.Namespace)"),
    "numpy scalar": ({"state_dict": weights(), "best": np.float64(1)}, "other objects (numpy"),
    "numpy arrays": ({name: tensor.numpy() for name, tensor in weights().items()}, "other objects (numpy"),
    "tensor": (torch.ones(3), "holds no state dict (tensors by name), but an object: Tensor"),
    "list": ([1, 2], "but an object: list"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_other_content_than_a_state_dict_is_named(name: str, zipped: bool, tmp_path: Path) -> None:
    content, expected = FOREIGN[name]
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    message = refused(tmp_path / "w.pt")
    assert expected in message if zipped or "but an" in expected else "a whole module or other objects" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt", ""])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is no file of weights: it begins with '<!DOCTYPE html><html'"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a", "is a git-lfs pointer"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is no file of weights"),
        (b"PK\x03\x04" + bytes(100), "is damaged or cut short"),
        (b"\x80\x02}q", "is damaged or cut short"),
        ((10**6).to_bytes(8, "little") + b'{"a":', "is damaged or cut short"),
    ],
)
def test_other_files_than_weights_are_recognised_by_content(
    content: bytes, expected: str, suffix: str, tmp_path: Path
) -> None:
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert expected in refused(tmp_path / f"w{suffix}")


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "w.pt")
    save_file(weights(), tmp_path / "w.safetensors")
    for file in tmp_path.iterdir():
        whole = file.read_bytes()
        for length in (10, len(whole) // 2, len(whole) - 4):
            file.write_bytes(whole[:length])
            assert "damaged or cut short" in refused(file)


def test_other_archives_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    assert "an archive that torch.save did not write" in refused(tmp_path / "w.npz")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("w/data.pkl", "")
        archive.writestr("w/constants.pkl", "")
    assert "a TorchScript program" in refused(tmp_path / "w.pt")


def test_the_suffix_does_not_decide(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "w.pt")
    torch.save(weights(), tmp_path / "w.safetensors")
    for file in tmp_path.iterdir():
        net = Net()
        load_state(net, file)
        assert torch.equal(net.decoder.bias, weights()["decoder.bias"])


def test_a_misspelt_file_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    torch.save(weights(), tmp_path / "weights" / "best.pt")
    assert f"did you mean '{tmp_path}/weights/best.pt'?" in refused(tmp_path / "wieghts" / "best.pt")


# ------------------------------------------------------------------------------- what lies beside the weights


def spec_of(model: dict[str, Any]) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": model,
        "data": {"source": "digits", "resolution": 16, "color": "rgb", "classes": [0, 1]},
        "losses": {"mse": 1.0},
        "optimizer": {"lr": 1e-3},
        "max_steps": 1,
        "num_evals": 1,
        "metrics": ["mse"],
    }
    return FinetuneSpec.model_validate(fields)


OWN = {"family": "conv_vae", "channels": 4, "latent_dim": 4}
DAMAGED: list[Any] = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b"[1]",
    b"null",
    b"{}",
    {"family": 3},
    {"family": "mlp_vae"},
    {"options": None},
    {"options": {"channels": "x"}},
    {"options": {"channels": -1}},
    {"options": {"breadth": 1}},
    {"channels_in": None},
    {"resolution": "16"},
    {"resolution": -16},
    {"resolution_adapters": 10**9},
]


@pytest.mark.parametrize("damage", DAMAGED, ids=repr)
def test_a_damaged_description_of_a_model_is_one_message(damage: Any, tmp_path: Path) -> None:
    build_model(spec_of(OWN), None).save(tmp_path)
    file = tmp_path / "ftae_model.json"
    good = json.loads(file.read_text())
    file.write_bytes(damage if isinstance(damage, bytes) else json.dumps(good | damage).encode())
    with pytest.raises(FtaeError, match=r"damaged|holds a") as caught:
        build_model(spec_of({"family": "conv_vae", "pretrained": str(tmp_path)}), None)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_description_of_an_earlier_version_gets_the_defaults(tmp_path: Path) -> None:
    build_model(spec_of({"family": "conv_vae"}), None).save(tmp_path)
    file = tmp_path / "ftae_model.json"
    saved = json.loads(file.read_text())
    del saved["options"]["channels"]
    file.write_text(json.dumps(saved))
    build_model(spec_of({"family": "conv_vae", "pretrained": str(tmp_path), "channels": 32}), None)


# ----------------------------------------------------------------------------------------------- the digest


def digest_of(folder: Path, **fields: Any) -> str | None:
    return model_digest(spec_of({"family": "autoencoder_kl", "pretrained": str(folder), **fields}).model)


def test_the_digest_covers_only_files_that_loading_reads(tmp_path: Path) -> None:
    vae, unet = tmp_path / "vae", tmp_path / "unet"
    for part in (vae, unet):
        part.mkdir()
        (part / "config.json").write_text("{}")
        (part / "diffusion_pytorch_model.safetensors").write_text(part.name)
    before = digest_of(tmp_path, subfolder="vae")
    (unet / "diffusion_pytorch_model.safetensors").write_text("other")
    (vae / "README.md").write_text("words")
    (vae / ".git").mkdir()
    (vae / ".git" / "index").write_text("words")
    (vae / "diffusion_pytorch_model.fp16.safetensors").write_text("not loaded")
    assert digest_of(tmp_path, subfolder="vae") == digest_of(vae) == before
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (vae / name).write_text("changed")
        assert digest_of(vae) != before
        before = digest_of(vae)


def test_the_digest_of_a_folder_is_stable(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "diffusion_pytorch_model.safetensors").write_text("weights")
    assert digest_of(tmp_path) == "784d36455c1cd881f898c2e998d30cdc"


def test_the_digest_of_the_other_families(tmp_path: Path) -> None:
    build_model(spec_of(OWN), None).save(tmp_path / "own")
    own = spec_of({"family": "conv_vae", "pretrained": str(tmp_path / "own")}).model
    before = model_digest(own)
    (tmp_path / "own" / "classes.json").write_text("[]")
    assert model_digest(own) == before
    shutil.copy(tmp_path / "own" / "ftae_model.json", tmp_path / "own" / "model.safetensors")
    assert model_digest(own) != before
    file = tmp_path / "w.pt"
    file.write_text("weights")
    custom = spec_of({"family": "a:b", "image_range": "0..1", "pretrained": str(file)}).model
    assert model_digest(custom) == weights_digest(str(file)) is not None
    assert model_digest(spec_of(OWN).model) is None
