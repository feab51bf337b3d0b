"""The built-in families: labels, learned priors, adapters to another resolution."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import MODELS, assert_same, built, grey, images_for, outputs, refused, rgb, spec_of

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.families import build_model
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError


def test_conv_ae_takes_another_resolution_than_it_was_trained_at(tmp_path: Path) -> None:
    built(MODELS["conv_ae"]).save(tmp_path)
    data = {"source": "digits", "resolution": 32, "color": "rgb", "classes": [0]}
    spec = spec_of({"family": "conv_ae", "pretrained": str(tmp_path)}, data=data)
    autoencoder = build_model(spec, None)
    assert outputs(autoencoder, torch.rand(1, 3, 32, 32))[-1].shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", ["mlp_cvae", "conv_cvae"])
def test_a_conditional_model_encodes_and_decodes_by_the_label(name: str) -> None:
    autoencoder = built(MODELS[name])
    images = images_for(autoencoder, 1).repeat(3, 1, 1, 1)
    labels = torch.tensor([0, 1, -1])  # -1: an image without a label
    latents = autoencoder.encode(images, labels).mode
    decoded = autoencoder.decode(latents[:1].repeat(3, 1), labels)
    for found in (latents, decoded):
        assert len({tuple(row.flatten().tolist()) for row in found}) == 3
    with pytest.raises(FtaeError, match="conditioned on labels and these images have none"):
        autoencoder.encode(images)


def test_a_conditional_model_needs_labels_and_its_own_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mlp_cvae needs labels, photos has none; use digits, or an image_folder"):
        spec_of(MODELS["mlp_cvae"], data={"source": "photos", "resolution": 16})
    assert "conv_cvae needs labels: put the images of each class into a sub-folder" in refused(MODELS["conv_cvae"])
    built(MODELS["conv_cvae"]).save(tmp_path)
    spec = spec_of(MODELS["conv_cvae"] | {"pretrained": str(tmp_path)})
    assert build_model(spec, 2).channels == 3
    with pytest.raises(FtaeError, match="is conditioned on 2 classes, the data has 3"):
        build_model(spec, 3)


def test_a_hierarchical_model_draws_from_its_learned_prior() -> None:
    autoencoder = built(MODELS["hierarchical_vae"])
    encoding = autoencoder.encode(images_for(autoencoder))
    assert encoding.posterior is not None
    assert encoding.posterior.prior is not None
    assert autoencoder.prior is not None
    modes = autoencoder.prior(5, None, torch.zeros_like)
    assert modes.shape == (5, encoding.latents.shape[1])
    top = 2 * 4 * 4  # the coarsest group's prior depends on nothing, the others' on the latents before them
    centre = encoding.posterior.prior[0]
    assert torch.equal(centre[0, :top], modes[0, :top])
    assert not torch.equal(centre[0, top:], modes[0, top:])
    assert not torch.equal(*autoencoder.prior(2, None, torch.randn_like))


def test_the_kl_of_a_hierarchical_model_is_that_from_its_prior() -> None:
    autoencoder = built(MODELS["hierarchical_vae"])
    posterior = autoencoder.encode(images_for(autoencoder)).posterior
    assert posterior is not None
    assert posterior.prior is not None
    normal = [
        torch.distributions.Normal(m, torch.exp(0.5 * v))
        for m, v in ((posterior.mean, posterior.logvar), posterior.prior)
    ]
    assert torch.allclose(posterior.kl(), torch.distributions.kl_divergence(*normal), atol=1e-5)


def adapted(model: dict[str, Any], folder: Path, number: int, resolution: int) -> Autoencoder:
    data = rgb(resolution) | {"classes": [0, 1]}
    return build_model(spec_of(model | {"pretrained": str(folder), "resolution_adapters": number}, data=data), 2)


@pytest.mark.parametrize("name", ["mlp_vae", "conv_vae", "mlp_cvae", "conv_cvae", "hierarchical_vae"])
def test_untrained_resolution_adapters_only_resize(name: str, tmp_path: Path) -> None:
    small = built(MODELS[name])
    small.save(tmp_path)
    large = adapted(MODELS[name], tmp_path, 2, 64)
    images, labels = torch.rand(2, 3, 64, 64), torch.tensor([0, 1])
    shrunk = torch.nn.functional.avg_pool2d(images, 4)
    with torch.no_grad():
        latents = large.encode(images, labels).mode
        assert torch.allclose(latents, small.encode(shrunk, labels).mode, atol=1e-5)
        image = small.decode(latents, labels)
        for _ in range(2):
            image = torch.nn.functional.interpolate(image, scale_factor=2, mode="bilinear")
        assert torch.allclose(large.decode(latents, labels), image, atol=1e-5)
    assert (large.prior is None) == (small.prior is None)


def test_resolution_adapters_are_saved_and_more_can_be_added(tmp_path: Path) -> None:
    built(MODELS["mlp_vae"]).save(tmp_path / "small")
    once = adapted(MODELS["mlp_vae"], tmp_path / "small", 1, 32)
    assert [s.name for s in once.stages if s.new] == ["encoder.outer.0", "decoder.outer.0"]
    with torch.no_grad():
        for parameter in once.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    once.save(tmp_path / "once")
    images = torch.rand(2, 3, 32, 32)
    kept = adapted(MODELS["mlp_vae"], tmp_path / "once", 1, 32)
    assert_same(outputs(kept, images), outputs(once, images))
    assert not any(stage.new for stage in kept.stages)
    twice = adapted(MODELS["mlp_vae"], tmp_path / "once", 2, 64)
    names = [stage.name for stage in twice.stages]
    assert names[:2] + names[-2:] == ["encoder.outer.1", "encoder.outer.0", "decoder.outer.0", "decoder.outer.1"]
    assert [s.name for s in twice.stages if s.new] == ["encoder.outer.1", "decoder.outer.1"]
    enlarged = torch.nn.functional.interpolate(images, scale_factor=2)  # pooling gives the original back
    assert torch.allclose(twice.encode(enlarged).mode, once.encode(images).mode, atol=1e-5)


def test_a_folder_of_format_1_is_read_under_the_old_name(tmp_path: Path) -> None:
    saved = built(MODELS["mlp_vae"] | {"resolution_adapters": 1})
    saved.save(tmp_path)
    file = tmp_path / "ftae_model.json"
    config = json.loads(file.read_text())
    assert config.pop("format") == 2
    file.write_text(json.dumps({**config, "outer_stages": config.pop("resolution_adapters")}))
    images = images_for(saved)
    assert_same(outputs(built({"family": "mlp_vae", "pretrained": str(tmp_path)}), images), outputs(saved, images))


def test_resolution_adapters_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    built(MODELS["mlp_vae"] | {"resolution_adapters": 1}).save(tmp_path)
    own = {"family": "mlp_vae", "pretrained": str(tmp_path)}
    message = refused(own, data=rgb(64))
    assert "with 1 resolution adapters takes images of 16 pixels a side, got data.resolution 64" in message
    assert "each of model.resolution_adapters doubles the resolution, and 3 of them fit" in message
    assert "model.resolution_adapters is 0, but" in refused(own | {"resolution_adapters": 0})
    new = {"family": "mlp_vae", "resolution_adapters": 2}
    assert "multiple of 4 (2**resolution_adapters), got 18" in refused(new, data=grey(18))


def test_l2_sp_holds_the_kept_stages_alone(tmp_path: Path) -> None:
    built(MODELS["mlp_vae"]).save(tmp_path)
    own = {"family": "mlp_vae", "pretrained": str(tmp_path), "resolution_adapters": 1}
    changes: dict[str, Any] = {
        "data": rgb(32),
        "losses": {"mse": 1.0, "l2_sp": 1.0},
        "max_steps": 3,
    }
    last = list(finetune(spec_of(own, **changes), tmp_path / "all"))[-1]
    assert 0.0 < last.metrics["train/l2_sp"] < 1e-4  # new weights, drawn anew for the reference, would be far off
    kept = ("encoder.hidden", "bottleneck", "decoder.hidden", "decoder.out")
    with pytest.raises(FtaeError, match="no stage that keeps pretrained weights is trained"):
        list(finetune(spec_of(own, **changes, freeze=kept), tmp_path / "new"))
