"""The translators: their size is that of the papers, and what they lack is refused."""

from typing import Any

import pytest
import torch
from builders import run_spec
from pydantic import ValidationError
from small_models import MODELS, built, images_for, refused, spec_of

from ftae.engine.models.builtin.translators import ResnetTranslatorNet, UnetTranslatorNet

PAIRS = {"source": "digit_edges", "resolution": 16}


def test_sizes_are_those_of_the_papers() -> None:
    """Besides the affine norms: the paper's biases before a batch norm make up for those of the norm."""
    with torch.device("meta"):
        unet = UnetTranslatorNet(channels_in=3, resolution=256, depth=8)
        resnet = ResnetTranslatorNet(channels_in=3, resolution=256, blocks=9)
    weights = [sum(p.numel() for p in net.parameters() if p.ndim > 1) for net in (unet, resnet)]
    assert [round(number / 1e6, 1) for number in weights] == [54.4, 11.4]
    assert [len(net.stages()) for net in (unet, resnet)] == [16, 15]


@pytest.mark.parametrize("family", ["unet_translator", "resnet_translator"])
def test_an_image_of_a_batch_does_not_depend_on_the_others(family: str) -> None:
    model = built(MODELS[family])
    images = images_for(model)
    _, together = model.run(images)
    _, alone = model.run(images[:1])
    torch.testing.assert_close(together[:1], alone)


def test_dropout_is_in_training_alone() -> None:
    model = built({"family": "unet_translator", "channels": 4, "depth": 3})
    images = images_for(model)
    assert torch.equal(model.run(images)[1], model.run(images)[1])
    model.train()
    assert not torch.equal(model.run(images)[1], model.run(images)[1])
    revised = spec_of(MODELS["unet_translator"] | {"pretrained": "folder", "dropout": 0.1})
    assert "dropout" in revised.model.revisable


def test_sides_that_cannot_be_halved_are_refused() -> None:
    assert "resolution must be a multiple of 32 (2**depth), got 16" in refused(
        {"family": "unet_translator", "depth": 5}
    )
    side = {"data": PAIRS | {"resolution": 18}}
    assert "must be a multiple of 4 (two halvings), got 18" in refused({"family": "resnet_translator"}, **side)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"data.source": "digits"}, "unet_translator needs inputs that differ from the images to give"),
        ({"losses": {"l1": 1.0, "ce": 0.1}}, "ce: needs latents, unet_translator has none"),
        ({"losses": {"l1": 1.0, "kl": 0.1}}, "kl: needs a posterior"),
        ({"model.pretrained": "m", "losses": {"l1": 1.0, "latent_anchor": 0.1}}, "latent_anchor: needs latents"),
        ({"model.pretrained": "m", "metrics": ["latent_drift"]}, "latent_drift needs latents"),
        ({"metrics": ["linear_probe"]}, "linear_probe needs latents"),
        ({"metrics": ["active_units"]}, "active_units needs a posterior"),
    ],
)
def test_what_needs_latents_is_refused(changes: dict[str, Any], rule: str) -> None:
    run: dict[str, Any] = {"model": {"family": "unet_translator"}, "data": PAIRS, "losses": {"l1": 1.0}}
    run_spec(**run)
    with pytest.raises(ValidationError) as caught:
        run_spec(**run | changes)
    assert rule in str(caught.value)


def test_a_translator_may_clean_images() -> None:
    data = {"source": "digits", "resolution": 16, "degrade": {"noise": 0.1}}
    spec = run_spec(model={"family": "unet_translator"}, data=data, losses={"l1": 1.0})
    assert spec.use == "translate"
    assert not spec.is_conditional
