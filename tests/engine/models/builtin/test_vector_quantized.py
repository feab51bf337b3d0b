"""Codebooks: what is chosen, what trains them, what moves them, and when."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from builders import run_spec
from diffusers import VQModel
from torch import Tensor

from ftae.engine.models.autoencoder import Autoencoder
from ftae.engine.models.builtin.vector_quantized import Quantizer
from ftae.engine.models.families import build_autoencoder, build_model
from ftae.engine.sizing import summarize
from ftae.engine.training.distributed import UnchangedBuffers
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError, TrainingFailed
from ftae.specs.finetune.run import FinetuneSpec


def quantizer(codebook: str = "ema", **options: Any) -> Quantizer:
    """Four codes of two numbers, at the corners of a square."""
    defaults: dict[str, Any] = {"ema_decay": None, "dead_code_threshold": None}
    made = Quantizer(codebook_size=4, code_dim=2, codebook=codebook, **(defaults | options))
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    with torch.no_grad():
        for tensor in (made.nearest._codebook.embed, made.nearest._codebook.embed_avg):
            tensor.copy_(corners[None])
    return made


def codes_of(made: Quantizer) -> Tensor:
    return made.nearest.codebook.detach().clone()


def vectors(*rows: tuple[float, float]) -> Tensor:
    """One image of one row, two channels."""
    return torch.tensor(rows).T.reshape(1, 2, 1, len(rows)).clone().requires_grad_()


def test_latents_are_exactly_the_nearest_codes() -> None:
    latents, codes = quantizer().eval()(vectors((0.1, 0.2), (0.3, 0.9), (5.0, 0.4)))
    assert codes.indices.tolist() == [[0, 1, 2]]
    assert latents[0, :, 0].T.tolist() == [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    assert codes.num_codes == 4


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_gradients_go_straight_through(codebook: str) -> None:
    encoded = vectors((0.1, 0.2), (0.3, 0.9))
    made = quantizer(codebook)
    latents, _ = made(encoded)
    weights = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]])
    (latents * weights).sum().backward()
    assert encoded.grad is not None
    assert torch.equal(encoded.grad, weights)
    assert all(p.grad is None for p in made.parameters())


def test_each_loss_term_moves_one_side() -> None:
    made, encoded = quantizer("gradient"), vectors((0.1, 0.2), (0.3, 0.9))
    _, codes = made(encoded)
    expected = (0.1**2 + 0.2**2 + 0.3**2 + 0.1**2) / 4
    assert codes.commitment.item() == pytest.approx(expected)
    assert codes.codebook is not None
    assert codes.codebook.item() == pytest.approx(expected)
    embed = made.nearest._codebook.embed
    assert torch.autograd.grad(codes.commitment, [encoded, embed], retain_graph=True, allow_unused=True)[1] is None
    of_encoded, of_codes = torch.autograd.grad(codes.codebook, [encoded, embed], allow_unused=True)
    assert of_encoded is None
    expected_grad = [[-0.2 / 4, -0.4 / 4], [-0.6 / 4, 0.2 / 4], [0.0, 0.0], [0.0, 0.0]]  # 2 (e - z) / 4 numbers
    assert torch.allclose(of_codes[0], torch.tensor(expected_grad))


def test_a_moving_average_has_no_codebook_term() -> None:
    assert quantizer()(vectors((0.1, 0.2)))[1].codebook is None
    assert not list(quantizer().parameters())


def test_a_moving_average_by_hand() -> None:
    made = quantizer(ema_decay=0.9)
    made(vectors((0.2, 0.0), (0.4, 0.0), (1.0, 0.8)))
    # Numbers of vectors begin at 1, sums at the codes: appendix A.1 of van den Oord et al. (2017).
    sizes = torch.tensor([0.9 + 0.1 * 2, 0.9, 0.9, 0.9 + 0.1])
    sums = torch.tensor([[0.1 * 0.6, 0.0], [0.0, 0.9], [0.9, 0.0], [0.9 + 0.1, 0.9 + 0.1 * 0.8]])
    assert torch.allclose(codes_of(made), sums / sizes[:, None], atol=1e-4)


@pytest.mark.parametrize("threshold", [None, 4.0])
def test_codes_do_not_move_in_eval_mode(threshold: float | None) -> None:
    made = quantizer(dead_code_threshold=threshold).eval()
    before = {name: t.clone() for name, t in made.state_dict().items()}
    made(vectors((0.2, 0.1), (7.0, 7.0)))
    assert all(torch.equal(t, before[name]) for name, t in made.state_dict().items())


def test_a_dead_code_becomes_a_vector_of_the_batch() -> None:
    made = quantizer(ema_decay=0.5, dead_code_threshold=0.6)
    torch.manual_seed(0)
    batch = [(0.1, 0.1), (0.2, 0.0), (0.0, 0.2)]
    made(vectors(*batch))  # the other three fall from 1 to 0.5
    found = codes_of(made)
    assert not any(
        (found[1:] == torch.tensor([corner])).all(1).any() for corner in ((0.0, 1.0), (1.0, 0.0), (1.0, 1.0))
    )
    assert {tuple(row) for row in found[1:].tolist()} == {tuple(row) for row in torch.tensor(batch).tolist()}


def test_bf16_chooses_as_fp32_does() -> None:
    torch.manual_seed(0)
    made = Quantizer(codebook_size=512, code_dim=8, codebook="ema", ema_decay=None, dead_code_threshold=None).eval()
    encoded = torch.randn(2, 8, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        latents, codes = made(encoded)
    assert latents.dtype == codes.commitment.dtype == torch.float32
    assert torch.equal(codes.indices, made(encoded)[1].indices)


@pytest.mark.parametrize("setting", [{"ema_decay": 0.9}, {"dead_code_threshold": 1.0}])
def test_settings_of_a_moving_average_are_refused_for_a_gradient_codebook(setting: dict[str, float]) -> None:
    with pytest.raises(FtaeError, match=f"{next(iter(setting))} has no effect on a codebook that is trained by"):
        quantizer("gradient", **setting)
    with pytest.raises(ValueError, match="has no effect on a gradient codebook, it needs codebook: ema"):
        spec_of({"family": "vq_vae", "codebook": "gradient", **setting})


# ------------------------------------------------------------------------------------------ families

SMALL = {"family": "vq_vae", "channels": 8, "codebook_size": 16, "code_dim": 4}


def spec_of(model: dict[str, Any], **changes: Any) -> FinetuneSpec:
    fields: dict[str, Any] = {
        "model": model,
        "data": {"source": "digits", "resolution": 16, "classes": [0, 1]},
        "losses": {"mse": 1.0, "commitment": 0.25},
        "optimizer": {"lr": 1e-3},
        "batch_size": 8,
        "max_steps": 4,
        "num_evals": 2,
        "metrics": ["codebook_usage", "perplexity"],
        "num_threads": 1,
    }
    return run_spec(**fields | changes)


def built(model: dict[str, Any]) -> Autoencoder:
    torch.manual_seed(0)
    return build_autoencoder(spec_of(model).model, spec_of(model).data, None).eval()


def test_a_frozen_moving_average_does_not_move_in_training(tmp_path: Path) -> None:
    spec = spec_of(SMALL, freeze=("codebook",))
    list(finetune(spec, tmp_path))
    autoencoder = build_model(spec, None).train()
    before = codes_of(autoencoder.net.quantizer)
    with torch.no_grad():
        autoencoder.encode(torch.rand(2, 1, 16, 16))
    assert torch.equal(codes_of(autoencoder.net.quantizer), before)


def test_bottom_codes_depend_on_top_codes() -> None:
    autoencoder = built(SMALL | {"family": "vq_vae_2"})
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        encoding = autoencoder.encode(images)
        assert [c.indices.shape for c in encoding.codes] == [(2, 16), (2, 64)]
        assert encoding.latents.shape == (2, 4 * (16 + 64))
        assert autoencoder.decode(encoding.latents).shape == images.shape
        for top in autoencoder.net.to_top.parameters():
            top.neg_()
        changed = autoencoder.encode(images)
    assert not torch.equal(changed.codes[1].commitment, encoding.codes[1].commitment)


def test_an_odd_side_has_no_top_level() -> None:
    with pytest.raises(FtaeError, match=r"resolution must be a multiple of 8 \(2\*\*\(depth \+ 1\)\), got 20"):
        build_model(spec_of(SMALL | {"family": "vq_vae_2"}, data={"source": "digits", "resolution": 20}), None)


def test_settings_of_the_moving_average_may_change_and_sizes_may_not(tmp_path: Path) -> None:
    built(SMALL | {"ema_decay": 0.9}).save(tmp_path)
    mine = {"family": "vq_vae", "pretrained": str(tmp_path)}
    assert built(mine).net.quantizer.nearest._codebook.decay == 0.9
    revised = built(mine | {"ema_decay": 0.8, "dead_code_threshold": 2.0})
    assert revised.net.quantizer.nearest._codebook.decay == 0.8
    assert revised.net.quantizer.nearest._codebook.threshold_ema_dead_code == 2.0
    revised.save(tmp_path / "revised")
    assert built(mine | {"pretrained": str(tmp_path / "revised")}).net.quantizer.nearest._codebook.decay == 0.8
    for other in ({"codebook_size": 32}, {"code_dim": 8}, {"codebook": "gradient"}):
        with pytest.raises(FtaeError, match=f"model.{next(iter(other))} is .*, but .* was built with"):
            built(mine | other)


def test_the_kind_of_codebook_is_checked_against_the_pretrained_model(tmp_path: Path) -> None:
    built(SMALL).save(tmp_path / "ema")
    built(SMALL | {"codebook": "gradient"}).save(tmp_path / "gradient")
    losses = {"mse": 1.0, "codebook": 1.0}
    with pytest.raises(ValueError, match="needs a codebook that is trained by gradient, this one is a moving average"):
        spec_of(SMALL, losses=losses)
    with pytest.raises(FtaeError, match=r"losses.codebook needs a codebook that is trained by gradient, that of"):
        build_model(spec_of({"family": "vq_vae", "pretrained": str(tmp_path / "ema")}, losses=losses), None)
    gradient = {"family": "vq_vae", "pretrained": str(tmp_path / "gradient")}
    assert summarize(spec_of(gradient, losses=losses), None).gradient_codebooks
    with pytest.raises(FtaeError, match=r"model\.ema_decay has no effect on a codebook that is trained by gradient"):
        build_model(spec_of(gradient | {"ema_decay": 0.9}), None)


@pytest.mark.parametrize("name", ["codebook_usage", "perplexity"])
def test_metrics_of_codes_are_refused_for_models_without_codes(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} needs a codebook, conv_ae has none"):
        spec_of({"family": "conv_ae"}, losses={"mse": 1.0}, metrics=[name])
    with pytest.raises(ValueError, match="needs a codebook, conv_ae has none"):
        spec_of({"family": "conv_ae"}, metrics=["mse"])


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_moving_average_is_refused_for_several_workers(codebook: str) -> None:
    losses = {"mse": 1.0, "commitment": 0.25} | ({"codebook": 1.0} if codebook == "gradient" else {})
    training = Trainer(spec_of(SMALL | {"codebook": codebook}, losses=losses))
    buffers = UnchangedBuffers(training.autoencoder)
    training.train_step()
    refused = pytest.raises(FtaeError, match="moves with the images it has seen")
    with refused if codebook == "ema" else nullcontext():
        buffers.check()


def test_a_collapsed_codebook_ends_the_run(tmp_path: Path) -> None:
    """A learning rate that throws every vector into one code."""
    model = SMALL | {"codebook": "gradient"}
    losses = {"mse": 1.0, "commitment": 1.0, "codebook": 1.0}
    spec = spec_of(model, losses=losses, optimizer={"lr": 1.0}, max_steps=60, num_evals=12, max_grad_norm=None)
    run = finetune(spec, tmp_path)
    assert next(run).metrics["val/codebook_usage"] > 1 / 16
    with pytest.raises(TrainingFailed) as caught:
        list(run)
    assert caught.value.reason == "codebook collapse"


@pytest.fixture
def vq_model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    VQModel(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=2,
        num_vq_embeddings=16,
        norm_num_groups=4,
    ).save_pretrained(tmp_path / "vq")
    return tmp_path / "vq"


def test_vq_model_equals_that_of_diffusers(vq_model: Path) -> None:
    data = {"source": "digits", "resolution": 16, "color": "rgb"}
    spec = spec_of({"family": "vq_model", "pretrained": str(vq_model)}, data=data)
    autoencoder = build_autoencoder(spec.model, spec.data, None).eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        theirs = autoencoder.net(images)
        encoding = autoencoder.encode(images)
        reconstruction = autoencoder.decode(encoding.latents)
        encoded = autoencoder.net.encode(images).latents
    assert torch.allclose(reconstruction, theirs.sample, atol=1e-5)
    (codes,) = encoding.codes
    rows = autoencoder.net.quantize.embedding.weight[codes.indices].movedim(2, 1).reshape(encoded.shape)
    assert torch.equal(encoding.latents, rows)
    assert codes.codebook is not None
    assert codes.commitment.item() == codes.codebook.item() == pytest.approx(F.mse_loss(rows, encoded).item())
    # With legacy off, diffusers itself weighs the commitment with beta, as the paper does.
    assert theirs.commit_loss.item() == pytest.approx(0.25 * codes.commitment.item() + codes.codebook.item())


def test_stages_of_the_vq_model(vq_model: Path) -> None:
    data = {"source": "digits", "resolution": 16, "color": "rgb"}
    spec = spec_of({"family": "vq_model", "pretrained": str(vq_model)}, data=data)
    summary = summarize(spec, None)
    names = [stage.name for stage in summary.stages]
    assert names[names.index("quant_conv") :][:3] == ["quant_conv", "quantize", "post_quant_conv"]
    assert summary.stages[names.index("quantize")].num_parameters == 16 * 2
    assert (summary.codebooks, summary.gradient_codebooks) == ((16,), True)
