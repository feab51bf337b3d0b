"""Interpolations between images, and their pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from untrained_models import untrained

from ftae.errors import FtaeError
from ftae.inference.interpolation import interpolate, lerp, slerp
from ftae.inference.model import TunedModel
from ftae.inference.pictures import read_named_image, save_gif, save_sheet


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
