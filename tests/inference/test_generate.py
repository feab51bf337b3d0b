"""Reconstructions, interpolations and samples of models that were really trained."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import run_spec
from PIL import Image

from ftae.engine.data.dataset import load_dataset
from ftae.engine.models.autoencoder import Codes, Encoding
from ftae.engine.models.families import build_model
from ftae.engine.process import device_of
from ftae.errors import FtaeError
from ftae.inference.folders import run_folder
from ftae.inference.interpolation import interpolate, lerp, slerp
from ftae.inference.model import TunedModel, load_model
from ftae.inference.pictures import file_names, pixels_of, prepare_folder, read_named_image, save_gif, save_sheet
from ftae.inference.sampling import sample
from ftae.inference.source import find_model


@pytest.fixture(scope="session")
def model(home: Path) -> TunedModel:
    return load_model(find_model(str(home / "runs/digits"), "searches", notify=lambda line: None))


def untrained(**model: Any) -> TunedModel:
    """A model of some family, with the digits 3 and 7."""
    spec = run_spec(model=model, losses={"mse": 1.0}, metrics=["psnr"])
    return TunedModel(build_model(spec, 2), spec, device_of(spec), ("3", "7"))


# ----------------------------------------------------------------------------------------- reconstruct


def test_every_image_comes_back_under_its_name(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "below" / "out"
    assert run_folder(model, pictures, out, overwrite=False, notify=said.append) == 12
    names = {str(path.relative_to(out)) for path in out.rglob("*.png")}
    whole = {str(p.relative_to(pictures)) for p in pictures.rglob("*.png") if "broken" not in p.name}
    assert names == whole | {"sheet.png"}
    assert ["broken.png is skipped: not an image" in line for line in said] == [True]
    for name in whole:
        expected = pixels_of(model.run(read_named_image(model, pictures / name, print)))[0, :, :, 0].astype(int)
        assert np.abs(np.asarray(Image.open(out / name)).astype(int) - expected).max() <= 1
    assert Image.open(out / "sheet.png").size == (4 * (2 * 96 + 2) - 2, 3 * (96 + 2) - 2)


def test_no_input_is_overwritten(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    shutil.copytree(pictures, source)
    before = {path: path.read_bytes() for path in source.rglob("*.png")}
    for out in (source, source / "3", source / "new", tmp_path, tmp_path / "in" / ".." / "in"):
        with pytest.raises(FtaeError, match="must be apart from"):
            run_folder(model, source, out, overwrite=True, notify=lambda line: None)
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_not_empty_needs_overwrite(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FtaeError, match=r"is not empty; choose another folder, or use --overwrite"):
        prepare_folder(tmp_path, overwrite=False)
    prepare_folder(tmp_path, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(FtaeError, match="is a file; name a folder"):
        prepare_folder(tmp_path / "mine.txt", overwrite=True)


def test_no_two_images_get_one_name() -> None:
    names = ["a/x.jpg", "a/x.png", "b.jpg", "sheet.webp"]
    assert file_names(names, taken=["sheet.png"]) == {
        "a/x.jpg": "a/x.jpg.png",
        "a/x.png": "a/x.png.png",
        "b.jpg": "b.png",
        "sheet.webp": "sheet.webp.png",
    }


@pytest.mark.parametrize(
    "names",
    [
        ["x.jpg", "x.png", "x.jpg.png", "x.jpg.webp"],
        ["cat/a.jpg", "cat/a.png/b.jpg"],  # a folder of images may be named like one
        ["sheet.png.jpg", "sheet.jpg", "sheet.png"],
        ["a.b/c.tif", "a.b/c", "a.b/c.gif"],
        ["new\nline.png", "gr\udcfcn.png", "gr\udcfcn.gif"],
    ],
)
def test_written_names_are_apart_and_below_the_folder(names: list[str]) -> None:
    written = file_names(names, taken=["sheet.png"])
    assert list(written) == names
    paths = [Path(png) for png in written.values()]
    assert len({*paths, Path("sheet.png")}) == len(names) + 1
    assert not {*paths} & {parent for path in paths for parent in path.parents}
    assert all(path.suffix == ".png" and not path.is_absolute() and ".." not in path.parts for path in paths)


def test_what_of_the_inputs_is_not_used_is_said(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "in")
    (tmp_path / "in" / "3" / "a.heic").touch()
    (tmp_path / "in" / "3" / "dead.png").symlink_to("/nowhere")
    said: list[str] = []
    assert run_folder(model, tmp_path / "in", tmp_path / "out", overwrite=False, notify=said.append) == 12
    assert said[:2] == [
        f"{tmp_path / 'in'}: 1 file of other kinds left out: .heic 1",
        f"{tmp_path / 'in'}/3/dead.png is skipped: a link to nothing",
    ]


def test_what_values_are_is_not_guessed_of_images_that_are_named(model: TunedModel, tmp_path: Path) -> None:
    dark = np.full((16, 16), 4095, np.uint16)
    (tmp_path / "in").mkdir()
    Image.fromarray(dark).save(tmp_path / "in" / "dark.png")
    with pytest.raises(FtaeError, match="looks like 12 bits"):
        run_folder(model, tmp_path / "in", tmp_path / "out", overwrite=False, notify=print)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FtaeError, match="looks like 12 bits"):
        read_named_image(model, tmp_path / "in" / "dark.png", print)


def test_a_folder_without_a_readable_image(model: TunedModel, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"not an image")
    with pytest.raises(FtaeError, match=r"no image of .* can be read"):
        run_folder(model, tmp_path / "in", tmp_path / "out", overwrite=False, notify=lambda line: None)


def test_a_conditional_model_takes_the_labels_of_sub_folders(pictures: Path, tmp_path: Path) -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    run_folder(model, pictures, tmp_path / "out", overwrite=False, notify=lambda line: None)
    name = "7/picture 00: as taken.png"
    image = read_named_image(model, pictures / name, print)
    made = [pixels_of(model.run(image, torch.tensor([label])))[0, :, :, 0] for label in (0, 1)]
    written = np.asarray(Image.open(tmp_path / "out" / name)).astype(int)
    assert np.abs(written - made[1]).max() <= 1 < np.abs(written - made[0]).max()
    with pytest.raises(FtaeError, match="the model is conditioned on labels: put the images"):
        run_folder(model, pictures / "3", tmp_path / "plain", overwrite=False, notify=lambda line: None)
    shutil.copytree(pictures / "3", tmp_path / "in" / "4")
    with pytest.raises(FtaeError, match="the label of an image must be one of 3, 7, got '4'"):
        run_folder(model, tmp_path / "in", tmp_path / "other", overwrite=False, notify=lambda line: None)


# ----------------------------------------------------------------------------------------- interpolate


@pytest.mark.parametrize("spherical", [False, True])
def test_the_ends_are_the_two_reconstructions(model: TunedModel, pictures: Path, spherical: bool) -> None:
    a, b = (read_named_image(model, path, print) for path in sorted(pictures.glob("7/*.png"))[:2])
    made, description = interpolate(model, a, b, 5, spherical=spherical, label=None)
    assert description.startswith("spherical" if spherical else "linear")
    ends = model.run(torch.cat([a, b]))
    assert torch.allclose(made[[0, -1]], ends, atol=1e-6)
    steps = (made[1:] - made[:-1]).abs().flatten(1).mean(1)
    assert (steps > 0).all()


def test_slerp_turns_evenly_and_keeps_the_length() -> None:
    a, b = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double(), torch.tensor([[0.0, 0.0], [0.0, 2.0]]).double()
    for t in (0.0, 0.25, 0.5, 1.0):
        made = slerp(a, b, t)
        assert made.norm() == pytest.approx(2.0)
        assert torch.arccos((made * a).sum() / 4.0) == pytest.approx(t * np.pi / 2)
    assert torch.equal(slerp(a, b, 0.0), a)
    assert torch.equal(slerp(a, b, 1.0), b)
    assert lerp(a, b, 0.5).norm() < 1.5


@pytest.mark.parametrize("b", [[3.0, 0.0], [-1.0, 0.0], [1.0, 1e-6], [0.0, 0.0]])
def test_slerp_of_nearly_parallel_vectors_is_linear(b: list[float]) -> None:
    a, end = torch.tensor([1.0, 0.0]).double(), torch.tensor(b).double()
    assert torch.equal(slerp(a, end, 0.3), lerp(a, end, 0.3))


def test_labels_and_images_of_an_interpolation(model: TunedModel, pictures: Path, tmp_path: Path) -> None:
    image = read_named_image(model, next(pictures.glob("7/*.png")), print)
    with pytest.raises(FtaeError, match="conv_vae is not conditioned on labels: leave out the label"):
        interpolate(model, image, image, 3, spherical=False, label=0)
    conditional = untrained(family="mlp_cvae", hidden=8, latent_dim=2)
    with pytest.raises(FtaeError, match="mlp_cvae needs a label"):
        interpolate(conditional, image, image, 3, spherical=False, label=None)
    assert interpolate(conditional, image, image, 3, spherical=False, label=1)[0].shape == (3, 1, 16, 16)
    with pytest.raises(FtaeError, match=r"there is no image file .*none\.png"):
        read_named_image(model, tmp_path / "none.png", print)
    with pytest.raises(FtaeError, match=r"broken\.png: not an image"):
        read_named_image(model, pictures / "3/picture 99: broken.png", print)


def test_pictures_of_frames(tmp_path: Path) -> None:
    frames = np.stack([np.full((16, 16, 1), value, np.uint8) for value in (0, 100, 200)])
    save_gif(frames, tmp_path / "frames.gif")
    with Image.open(tmp_path / "frames.gif") as animation:
        assert (animation.size, getattr(animation, "n_frames", 1)) == ((96, 96), 4)  # there and back: 0 1 2 1
    save_sheet(frames, tmp_path / "sheet.png", columns=2)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 96 + 2, 2 * 96 + 2)
    assert [int(sheet[0, 0]), int(sheet[0, -1]), int(sheet[-1, 0]), int(sheet[-1, -1])] == [0, 100, 200, 255]


# ---------------------------------------------------------------------------------------------- sample


def test_a_seed_gives_the_same_images_and_moves_no_generator(model: TunedModel) -> None:
    before = torch.get_rng_state()
    for fitted in (False, True):
        first, description = sample(model, None, 20, seed=3, fitted=fitted)
        again, _ = sample(model, None, 20, seed=3, fitted=fitted)
        other, _ = sample(model, None, 20, seed=4, fitted=fitted)
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert first.shape == (20, 1, 16, 16)
        assert description.startswith(
            "a Gaussian fitted to the latents of 290 training" if fitted else "the standard normal"
        )
    assert torch.equal(torch.get_rng_state(), before)


def test_latents_of_the_prior_are_standard_normal(model: TunedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(TunedModel, "decode", lambda self, latents, labels=None: seen.append(latents) or latents)
    sample(model, None, 4000, seed=0, fitted=False)
    latents = torch.cat(seen)
    assert latents.mean(0).abs().max() < 0.06
    assert (latents.std(0) - 1).abs().max() < 0.06


def test_the_fitted_gaussian_has_the_moments_of_the_training_latents(
    model: TunedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = load_dataset(model.spec.data).train.images
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
    posterior = model.encode(images).posterior
    assert posterior is not None
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(TunedModel, "decode", lambda self, latents, labels=None: seen.append(latents) or latents)
    sample(model, None, 4000, seed=0, fitted=True)
    latents = torch.cat(seen)
    std = (posterior.mean.var(0, correction=0) + posterior.logvar.exp().mean(0)).sqrt()
    assert torch.allclose(latents.mean(0), posterior.mean.mean(0), atol=0.06)
    assert torch.allclose(latents.std(0) / std, torch.ones_like(std), atol=0.06)


def test_a_learned_prior_is_asked() -> None:
    model = untrained(family="hierarchical_vae", channels=4, latent_channels=2)
    images, description = sample(model, None, 3, seed=0, fitted=False)
    assert description == "the prior that the model has learned"
    assert images.shape == (3, 1, 16, 16)
    assert not torch.equal(images, sample(model, None, 3, seed=1, fitted=False)[0])


def test_a_plain_autoencoder_has_no_prior() -> None:
    model = untrained(family="conv_ae", channels=4, latent_channels=2)
    with pytest.raises(FtaeError, match="conv_ae has no prior to draw latents from; --fitted"):
        sample(model, None, 3, seed=0, fitted=False)
    assert sample(model, None, 3, seed=0, fitted=True)[0].shape == (3, 1, 16, 16)


def test_each_class_is_drawn_by_its_label() -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    labels, names = model.labels_to_sample(2, None)
    assert labels is not None
    assert (labels.tolist(), names) == ([0, 0, 1, 1], ["3-0000", "3-0001", "7-0000", "7-0001"])
    one, names = model.labels_to_sample(2, "7")
    assert one is not None
    assert (one.tolist(), names) == ([1, 1], ["7-0000", "7-0001"])
    images = [sample(model, each, 2, seed=0, fitted=False)[0] for each in (one, one - 1)]
    assert not torch.equal(*images)
    with pytest.raises(FtaeError, match="the label of an image must be one of 3, 7, got '4'"):
        model.labels_to_sample(2, "4")


def test_a_label_has_no_effect_on_other_models(model: TunedModel) -> None:
    with pytest.raises(FtaeError, match="conv_vae is not conditioned on labels: leave out the label '3'"):
        model.labels_to_sample(2, "3")


def test_codes_are_drawn_as_often_as_they_were_seen_at_each_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that quantises the mean of each quarter of the image to one bit."""
    model = untrained(family="conv_ae", channels=4, latent_channels=2)

    def encode(images: torch.Tensor, labels: object = None, noise: object = None) -> Encoding:
        quarters = torch.nn.functional.adaptive_avg_pool2d(images, 2)
        codes = (quarters > 0.3).float()
        return Encoding(codes, codes=(Codes(codes.flatten(1).long(), 2, torch.zeros(()), None),))

    monkeypatch.setattr(model.autoencoder, "_encode", encode)
    monkeypatch.setattr(model.autoencoder, "_decode", lambda latents, labels: latents)
    drawn, description = sample(model, None, 4000, seed=0, fitted=False)
    assert description.startswith("the codes of 290 training images")
    pixels = load_dataset(model.spec.data).train.images
    seen = encode(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255).latents
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(drawn.mean(0), seen.mean(0), atol=0.04)
    with pytest.raises(FtaeError, match="a Gaussian cannot be fitted to codes; leave out --fitted"):
        sample(model, None, 3, seed=0, fitted=True)
    image = torch.zeros(1, 1, 16, 16)
    assert "between quantised latents" in interpolate(model, image, 1 - image, 3, spherical=False, label=None)[1]


@pytest.mark.parametrize("family", ["vq_vae", "vq_vae_2"])
def test_drawn_codes_are_codes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every level: each position of what is drawn holds what some training image has at that position."""
    model = untrained(family=family, channels=4, depth=1, code_dim=3, codebook_size=8)
    seen: list[torch.Tensor] = []
    decode = TunedModel.decode
    monkeypatch.setattr(
        TunedModel, "decode", lambda self, latents, *rest: seen.append(latents) or decode(self, latents)
    )
    images, _ = sample(model, None, 5, seed=0, fitted=False)
    assert images.shape == (5, 1, 16, 16)
    pixels = load_dataset(model.spec.data).train.images
    encoding = model.encode(torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255)
    known, drawn = encoding.latents.flatten(1), torch.cat(seen).flatten(1)
    start = 0
    for codes in encoding.codes:
        count = codes.indices.shape[1]
        for position in range(count):
            columns = start + position + count * torch.arange(3)
            options = known[:, columns].unique(dim=0)
            distances = torch.cdist(drawn[:, columns].double(), options.double()).min(1).values
            assert distances.max() < 1e-5
        start += 3 * count
    assert start == known.shape[1]


@pytest.mark.parametrize("name", ["../../../escaped", "/tmp/escaped", "..", "a\\b", "a\0b", "", 7, None])
def test_no_class_of_a_strangers_model_becomes_a_path(home: Path, tmp_path: Path, name: Any) -> None:
    shutil.copytree(home / "exports" / "small", tmp_path / "run")
    (tmp_path / "run" / "model" / "classes.json").write_text(json.dumps(["3", name]))
    source = find_model(str(tmp_path / "run"), "searches", notify=lambda line: None)
    with pytest.raises(FtaeError, match=r"classes\.json: the name of a class must "):
        load_model(source)


@pytest.mark.parametrize("content", ["{}", "[", "7"])
def test_classes_that_are_no_list_are_refused(home: Path, tmp_path: Path, content: str) -> None:
    shutil.copytree(home / "exports" / "small", tmp_path / "run")
    (tmp_path / "run" / "model" / "classes.json").write_text(content)
    with pytest.raises(FtaeError, match=r"classes\.json"):
        load_model(find_model(str(tmp_path / "run"), "searches", notify=lambda line: None))


def test_a_class_that_cannot_name_a_file_is_not_drawn() -> None:
    model = untrained(family="conv_cvae", channels=4, depth=1, latent_dim=4)
    hostile = replace(model, class_names=("3", "../7"))
    assert hostile.labels_to_sample(1, "3")[1] == ["3-0000"]
    with pytest.raises(FtaeError, match="is used as a file name"):
        hostile.labels_to_sample(1, None)
