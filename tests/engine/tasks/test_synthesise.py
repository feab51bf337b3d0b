"""The task of generators, and what discriminators beside them can do."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from small_models import MODELS, spec_of

from ftae.engine.tasks.adversarial_losses import ADVERSARIAL_LOSSES
from ftae.engine.tasks.discriminator import discriminator_of
from ftae.engine.training.checkpoint import latest_checkpoint
from ftae.engine.training.export_model import export_model
from ftae.engine.training.loop import finetune
from ftae.engine.training.trainer import Trainer
from ftae.errors import FtaeError
from ftae.specs.finetune.run import FinetuneSpec

SMALL = {"channel_base": 64, "channel_max": 8}


def generator_spec(discriminator: dict[str, Any] | None = None, **changes: Any) -> FinetuneSpec:
    return spec_of(MODELS["stylegan2"], discriminator=SMALL | (discriminator or {}), **changes)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a generator, and its discriminator beside it."""
    folder = tmp_path_factory.mktemp("generator")
    spec = generator_spec(max_steps=2, num_evals=1)
    *_, last = finetune(spec, folder / "run")
    export_model(spec, folder / "run" / str(last.checkpoint), folder / "model")
    return folder / "model"


def test_a_generator_brings_the_discriminator_of_its_family() -> None:
    spec = spec_of(MODELS["dcgan"])
    settings = spec.discriminator
    assert (settings.architecture, settings.start_fraction, settings.adaptive) == ("dcgan", 0.0, False)
    assert spec.use == "sample"
    other = spec_of(MODELS["dcgan"], discriminator={"architecture": "patch", "channels": 4, "depth": 1, "lr": 0.5})
    assert (other.discriminator.architecture, other.discriminator.lr) == ("patch", 0.5)
    again = FinetuneSpec.model_validate(spec.model_dump(mode="json"))
    assert again == spec


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"losses": {"mse": 1.0, "adversarial": 1.0}}, "stylegan2 makes images of noise"),
        ({"losses": {"tv": 1.0}}, "must be above 0: stylegan2 learns from its discriminator"),
        ({"metrics": ["psnr"]}, "stylegan2 makes images of noise"),
        ({"discriminator": SMALL | {"adaptive": True}}, "must be false"),
        ({"discriminator": {"depth": 3}}, 'has no effect where architecture is "stylegan2", it needs patch'),
        ({"discriminator": SMALL | {"l2_sp": 1.0}}, "compares with the pretrained discriminator"),
        ({"discriminator": SMALL | {"conditional": True}}, "needs inputs that differ"),
        ({"data": {"source": "digits", "resolution": 24}}, "a power of two from 8 on, got 24"),
        ({"data": {"source": "digit_edges", "resolution": 16}}, "pairs and data.degrade are for other models"),
    ],
)
def test_what_a_generator_cannot_use_is_refused(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValidationError, match=rule):
        spec_of(MODELS["stylegan2"], **changes)


def test_the_generator_rests_while_a_new_discriminator_learns() -> None:
    spec = generator_spec({"start_fraction": 0.5, "warmup_fraction": 0.5}, max_steps=4, num_evals=1)
    trainer = Trainer(spec)
    model, judge = (network.model for network in trainer.task.networks)
    before, judged = ({k: t.clone() for k, t in m.state_dict().items()} for m in (model, judge))
    trainer.train_to(2)
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert not all(torch.equal(t, judged[k]) for k, t in judge.state_dict().items())
    trainer.train_to(3)
    assert not all(torch.equal(t, before[k]) for k, t in model.state_dict().items())


def test_frozen_stages_of_both_networks_do_not_move(exported: Path, tmp_path: Path) -> None:
    model = MODELS["stylegan2"] | {"pretrained": str(exported)}
    settings = SMALL | {"pretrained": str(exported), "freeze_depth": 2, "r1": 0.1, "lr": 1e-2}
    spec = spec_of(model, discriminator=settings, freeze_depth=2, optimizer={"lr": 1e-2}, max_steps=3, num_evals=1)
    list(finetune(spec, tmp_path))
    newest = latest_checkpoint(tmp_path)
    assert newest is not None
    for file, start, frozen in (
        ("model", "model", ("mapping.", "synthesis.b4.")),
        ("discriminator", "discriminator", ("b16.",)),
    ):
        old, new = (load_file(folder / f"{name}.safetensors") for folder, name in ((exported, start), (newest, file)))
        new = {name.removeprefix("net."): tensor for name, tensor in new.items()}
        moved = {name for name in old if not torch.equal(old[name], new[name])}
        assert moved
        assert not [name for name in moved if name.startswith(frozen)]


def test_a_discriminator_is_loaded_from_the_folder_of_a_model(exported: Path) -> None:
    loaded = discriminator_of(generator_spec({"pretrained": str(exported)})).net.state_dict()
    saved = load_file(exported / "discriminator.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())


def test_a_converted_discriminator_says_how_it_was_built(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "discriminator.json").write_text(json.dumps({"options": {"channel_base": 128, "channel_max": 8}}))
    with pytest.raises(FtaeError, match=r"discriminator.channel_base is 64, but .* was built with 128"):
        discriminator_of(generator_spec({"pretrained": str(tmp_path)}))


def test_too_many_frozen_stages_are_named_as_those_of_the_discriminator() -> None:
    with pytest.raises(FtaeError, match="discriminator: freeze_depth must be at most 4"):
        discriminator_of(generator_spec({"freeze_depth": 5}))
    with pytest.raises(FtaeError, match=r"discriminator.lr_multipliers: 'conv_9' matches nothing"):
        Trainer(generator_spec({"lr_multipliers": {"conv_9": 0.1}}))


def test_lazy_penalties_adapt_the_rates_of_adam() -> None:
    every, lazy = (generator_spec({"r1": 1.0, "r1_every": k}).discriminator.optimizer() for k in (1, 3))
    assert (every.lr, every.betas) == (2.0e-4, (0.0, 0.99))
    assert lazy.lr == pytest.approx(1.5e-4)
    assert lazy.betas == (0.0, pytest.approx(0.99**0.75))


def test_a_lazy_penalty_is_computed_in_its_steps_alone() -> None:
    real, fake = torch.rand(2, 4, 3, 16, 16).mul(2.0).sub(1.0).unbind(0)

    def loss(step: int, **settings: float) -> float:
        task: Any = Trainer(generator_spec(settings, max_steps=2, num_evals=1)).task
        task.discriminator.begin_step()
        return float(task.discriminator_loss(real, fake, real, step).total)

    plain = loss(0)
    assert loss(1, r1=100.0, r1_every=2) == pytest.approx(plain)
    assert loss(0, r1=100.0, r1_every=2) - plain == pytest.approx(2.0 * (loss(0, r1=100.0) - plain), rel=1e-4)


def test_the_relativistic_loss_compares_pairs() -> None:
    loss, real, fake = ADVERSARIAL_LOSSES["relativistic"], torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [2.0]])
    expected = torch.nn.functional.softplus(torch.tensor([-1.0, 2.0])).mean()
    assert loss.is_relative
    assert torch.allclose(loss.discriminator(real, fake), expected)
    assert torch.allclose(loss.model(fake, real), torch.nn.functional.softplus(torch.tensor([1.0, -2.0])).mean())


def test_least_squares_draw_towards_1_and_0() -> None:
    loss = ADVERSARIAL_LOSSES["lsgan"]
    ones, zeros = torch.ones(2, 1), torch.zeros(2, 1)
    assert loss.discriminator(ones, zeros) == 0.0
    assert loss.model(ones, None) == 0.0
    assert loss.discriminator(zeros, ones) == 2.0


def test_path_lengths_are_measured_in_every_fourth_step() -> None:
    spec = generator_spec(losses={"adversarial": 1.0, "path_length": 2.0}, max_steps=5, num_evals=1)
    trainer = Trainer(spec)
    task: Any = trainer.task
    means = []
    for step in range(1, 6):
        trainer.train_to(step)
        means.append(float(task.state()["mean_path_length"]))
    assert means[0] == means[1] == means[2] == means[3] != means[4]
    assert "train/path_length" in trainer.measured()


def test_the_settings_of_other_generators_have_no_path_lengths() -> None:
    with pytest.raises(ValidationError, match="needs the styles of stylegan2, dcgan has none"):
        spec_of(MODELS["dcgan"], losses={"adversarial": 1.0, "path_length": 2.0})


def test_evaluations_have_the_same_noise_and_training_steps_have_their_own() -> None:
    trainer = Trainer(generator_spec())
    first, second = (trainer._batch(0).inputs, trainer._batch(1).inputs)
    assert first.shape == (8, 6)
    assert not torch.equal(first, second)
    assert torch.equal(trainer._batch(0).inputs, first)
