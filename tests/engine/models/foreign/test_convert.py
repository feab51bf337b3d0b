"""Foreign weights: each layout becomes the same network, and what cannot be converted is refused by name."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_weights import (
    rosinality_discriminator,
    rosinality_generator,
    small_discriminator,
    small_stylegan2,
    write_nvidia,
    write_rosinality,
    write_tensorflow,
)
from safetensors.torch import load_file, save_file
from small_models import built

from ftae.engine.models.foreign.convert import convert
from ftae.engine.models.gans.stylegan2_discriminator import StyleGan2DiscriminatorNet
from ftae.engine.models.gans.stylegan2_generator import StyleGan2GeneratorNet
from ftae.engine.tasks.discriminator import build_discriminator
from ftae.errors import FtaeError
from ftae.specs.finetune.discriminator import DiscriminatorSpec


def write(layout: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    averaged, g, d = small_stylegan2(0), small_stylegan2(1), small_discriminator()
    if layout == "pytorch":
        write_nvidia(path, {"G": g, "D": d, "G_ema": averaged, "augment_pipe": None}, monkeypatch)
    elif layout == "tensorflow":
        write_tensorflow(path, (g, d, averaged), monkeypatch)
    else:
        write_rosinality(
            path,
            g=rosinality_generator(g),
            d=rosinality_discriminator(d),
            g_ema=rosinality_generator(averaged),
            latent_avg=averaged.mapping.w_avg,
        )


@torch.no_grad()
@pytest.mark.parametrize("layout", ["pytorch", "tensorflow", "rosinality"])
def test_stylegan2_gives_the_images_and_logits_that_it_gave(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(layout, tmp_path / "file", monkeypatch)
    found = convert(tmp_path / "file", tmp_path / "out", licence="for research")
    assert (found.family, found.resolution) == ("stylegan2", 16)
    assert found.networks == ("model", "discriminator")
    files = {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert files == {"model.safetensors", "discriminator.safetensors"}  # not the generator that is not averaged
    z, images = torch.randn(3, 6), torch.randn(3, 3, 16, 16)
    averaged = small_stylegan2(0)
    net = loaded(StyleGan2GeneratorNet, tmp_path / "out", "ftae_model.json", "model")
    torch.testing.assert_close(net.run(z)[1], averaged.run(z)[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net.mapping.w_avg, averaged.mapping.w_avg)
    net = loaded(StyleGan2DiscriminatorNet, tmp_path / "out", "discriminator.json", "discriminator")
    torch.testing.assert_close(net(images), small_discriminator()(images), atol=1e-5, rtol=1e-5)


def loaded(net_type: Any, folder: Path, config: str, weights: str) -> Any:
    found = json.loads((folder / config).read_text())
    facts = {"channels_in": found["channels_in"], "resolution": found["resolution"]}
    net = net_type(**found["options"], **facts)
    net.load_state_dict(load_file(folder / f"{weights}.safetensors"), strict=True)
    return net.eval()


@torch.no_grad()
def test_a_run_begins_with_the_networks_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("pytorch", tmp_path / "file", monkeypatch)
    convert(tmp_path / "file", tmp_path / "out", licence="for research")
    model = built({"family": "stylegan2", "pretrained": str(tmp_path / "out")})
    z, images = torch.randn(2, 6), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(model.run(z)[1], small_stylegan2(0).run(z)[1])
    options = json.loads((tmp_path / "out/discriminator.json").read_text())["options"]
    spec = DiscriminatorSpec(architecture="stylegan2", pretrained=str(tmp_path / "out"), **options)
    discriminator = build_discriminator(spec, channels=3, resolution=16, seed=0)
    torch.testing.assert_close(discriminator(images), small_discriminator()(images))


def test_the_origin_and_the_licence_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("pytorch", tmp_path / "x.pkl", monkeypatch)
    convert(tmp_path / "x.pkl", tmp_path / "out", licence=" for research ")
    origin = json.loads((tmp_path / "out/weights.json").read_text())
    assert origin.pop("sha256") == hashlib.sha256((tmp_path / "x.pkl").read_bytes()).hexdigest()
    assert origin == {
        "file": "x.pkl",
        "layout": "NVIDIA's PyTorch pickles of StyleGAN2",
        "licence": "for research",
    }


def test_a_generator_alone_is_enough_and_its_average_of_w_is_computed(tmp_path: Path) -> None:
    write_rosinality(tmp_path / "x.pt", g_ema=rosinality_generator(small_stylegan2(0)))
    assert convert(tmp_path / "x.pt", tmp_path / "out", licence="MIT").networks == ("model",)
    net = loaded(StyleGan2GeneratorNet, tmp_path / "out", "ftae_model.json", "model")
    torch.manual_seed(0)
    expected = net.encode(torch.randn(20_000, 6)).latents.mean(0)
    torch.testing.assert_close(net.mapping.w_avg, expected, atol=0.02, rtol=0.0)


def test_a_flat_state_dict_in_safetensors_is_read(tmp_path: Path) -> None:
    save_file(small_stylegan2(0).state_dict(), tmp_path / "model.safetensors")
    found = convert(tmp_path / "model.safetensors", tmp_path / "out", licence="CC BY-NC 4.0")
    assert found.networks == ("model",)


def changed(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {name: tensor for name, tensor in (state | changes).items() if tensor is not None}


REFUSED = [
    ("without a tensor", {"synthesis.b8.conv0.bias": None}, "1 missing (synthesis.b8.conv0.bias)"),
    ("one more", {"synthesis.b8.skip.weight": torch.ones(1)}, "1 unexpected (synthesis.b8.skip.weight)"),
    (
        "another shape",
        {"synthesis.b8.conv0.bias": torch.ones(3)},
        "synthesis.b8.conv0.bias is (3,), the model wants (8,)",
    ),
    ("no block", {"synthesis.b8.conv1.weight": None}, "synthesis.b8.conv1.weight is missing"),
    ("labels", {"mapping.embed.weight": torch.ones(2, 2)}, "conditioned on labels"),
    ("a size that is claimed", {"mapping.fc0.weight": torch.zeros(1, 1).expand(10**7, 10**7)}, "this machine has"),
    ("filter", {"synthesis.b8.resample_filter": torch.ones(4, 4)}, "another filter than that of [1, 3, 3, 1]"),
]


@pytest.mark.parametrize(("changes", "message"), [pytest.param(*case[1:], id=case[0]) for case in REFUSED])
def test_every_tensor_must_fit(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.pt"
    torch.save(changed(small_stylegan2(0).state_dict(), **changes), file)
    with pytest.raises(FtaeError) as error:
        convert(file, tmp_path / "out", licence="x")
    assert str(error.value).startswith(f"FILE: {file}: ")
    assert message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt"]


def test_a_licence_is_asked_for_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("pytorch", tmp_path / "x.pkl", monkeypatch)
    with pytest.raises(FtaeError, match="need --licence TEXT: NVIDIA's code and weights are for research"):
        convert(tmp_path / "x.pkl", tmp_path / "out", licence=" ")


def test_a_folder_that_exists_is_kept(tmp_path: Path) -> None:
    with pytest.raises(FtaeError, match="exists; remove it"):
        convert(tmp_path / "x.pkl", tmp_path, licence="x")


def test_another_layout_is_named_with_what_is_read(tmp_path: Path) -> None:
    torch.save({"GAN": {"weight": torch.ones(1)}, "version": "1.8"}, tmp_path / "model_7.pt")
    with pytest.raises(FtaeError, match="it holds a dict, with GAN, version; ftae reads NVIDIA's PyTorch pickles"):
        convert(tmp_path / "model_7.pt", tmp_path / "out", licence="x")
