"""How long, how fast and with what a drafted run trains."""

from dataclasses import dataclass
from typing import Any

from ftae.drafting.document import Entry
from ftae.drafting.model import ModelFacts
from ftae.specs.finetune.data_spec import DataSpec


@dataclass(frozen=True)
class Known:
    """All that a recipe depends on. ``stages``: name and group of each, in order; empty before the model was built.

    ``size``: the number of its parameters; 0 before it was built.
    """

    model: ModelFacts
    data: DataSpec
    task: str
    num_train: int
    num_val: int
    classes: tuple[str, ...]
    gpu: bool
    stages: tuple[tuple[str, str], ...] = ()
    size: int = 0

    @property
    def has_height(self) -> bool:
        return min(self.data.size) > 1

    @property
    def kept(self) -> int:
        """The number of stages before the decoder; 0 where it is unknown."""
        names = [group for _, group in self.stages]
        return names.index("decoder") if "decoder" in names else 0


def log_range(low: float, high: float, **more: Any) -> dict[str, Any]:
    return {"low": low, "high": high, "log": True, **more}


def rate(known: Known) -> tuple[float, float, float, str]:
    """The learning rate to begin with, its range, and why."""
    model = known.model
    if model.kind.takes_noise:
        return (2.0e-3, 2.0e-4, 4.0e-3, "") if model.fields["family"] == "stylegan2" else (2.0e-4, 5.0e-5, 1.0e-3, "")
    if not model.kind.has_latents:
        return 2.0e-4, 5.0e-5, 4.0e-3, "2e-4 is that of the papers"
    if model.is_new:
        return 1.0e-3, 2.0e-4, 1.0e-2, "from scratch: Adam's usual rate, and what is around it"
    if not model.is_shared:
        return 1.0e-3, 1.0e-4, 2.0e-2, "small models bear large rates"
    if known.size and known.size < 5_000_000:
        return 3.0e-4, 3.0e-5, 5.0e-3, f"a small model ({known.size / 1e6:.1f} million weights) bears larger rates"
    if model.fields["family"] == "autoencoder_tiny":
        return 1.0e-4, 1.0e-5, 1.0e-3, "as in search_spaces/taesd.yaml"
    return 2.0e-5, 1.0e-6, 2.0e-4, "large pretrained models are tuned by small steps"


def optimization(known: Known, lr: float) -> list[Entry]:
    """Optimizer, clipping, schedule and averaging; ``lr``: the rate of the file's own configuration."""
    model, kind = known.model, known.model.kind
    if kind.takes_noise or not kind.has_latents:
        betas = [0.0, 0.99] if kind.takes_noise else [0.5, 0.999]
        schedule = {"name": "constant" if kind.takes_noise else "linear", "warmup_fraction": 0.0}
        return [
            Entry("optimizer", {"name": "adam", "lr": lr, "betas": betas}, "as in the papers"),
            Entry("max_grad_norm", None),
            Entry("schedule", schedule),
            *(
                [Entry("ema_half_life_fraction", 0.05, "of a generator, averaged weights are far better")]
                if kind.takes_noise
                else []
            ),
        ]
    optimizer: dict[str, Any] = {"name": "adamw", "lr": lr}
    why = ""
    if model.is_shared and known.task == "reconstruct":
        optimizer["lr_multipliers"] = {"encoder": 0.1}
        why = "an encoder that moves slowly changes its latents less"
    elif not model.is_new and not model.is_shared and known.kept:
        optimizer["lr_multipliers"] = {"encoder": 1.0}
    return [
        Entry("optimizer", optimizer, why),
        Entry("max_grad_norm", 1.0),
        Entry("schedule", {"name": "cosine", "warmup_fraction": 0.05}),
        Entry("ema_half_life_fraction", 0.05, "averaged weights are measured and exported; a share of the budget"),
    ]


# ----------------------------------------------------------------------------------------- the budget


def batch_size(known: Known) -> int:
    """Fewer for large images, and at most a quarter of the training images."""
    pixels = known.data.size[0] * known.data.size[1]
    wanted = 64 if pixels <= 32**2 else 16 if pixels <= 128**2 else 8
    if known.model.kind.both_ways:
        wanted = 8 if pixels <= 32**2 else 1
    while wanted > 1 and wanted * 4 > known.num_train:
        wanted //= 2
    return wanted


def _steps(known: Known) -> tuple[int, int]:
    """Steps, and about how often each image is seen."""
    batch = batch_size(known)
    epochs = 60 if known.model.is_new else 20
    low, high = (1000, 20_000) if known.model.is_new else (300, 3000)
    steps = min(max(round(epochs * known.num_train / batch / 100) * 100, low), high)
    return steps, max(1, round(steps * batch / known.num_train))


def budget(known: Known) -> list[Entry]:
    """Batch size, steps by the number of images, and evaluations."""
    steps, epochs = _steps(known)
    seen = (
        f"{known.num_train:,} images, each seen about {epochs} times" if epochs > 1 else f"{known.num_train:,} images"
    )
    return [
        Entry("batch_size", batch_size(known), "images at a time: half of it if memory runs out"),
        Entry("max_steps", steps, f"the budget of a full trial: {seen}"),
        Entry("num_evals", 9),
    ]


def precision(known: Known) -> list[Entry]:
    """bf16 on a GPU; nothing on a CPU, where it is slower."""
    if not known.gpu:
        return []
    return [Entry("precision", "bf16", "halves time and memory on a GPU; losses stay fp32")]


def search(known: Known, leaves: int) -> tuple[Entry, ...]:
    """The section ``search``; ``leaves``: how many values are searched."""
    trials = min(32, 8 + 4 * leaves)
    resources = {"cpus": 4, "gpus": 1} if known.gpu else {"cpus": 1}
    why = "of each trial" if known.gpu else "of each trial; a machine with GPUs: {cpus: 4, gpus: 1}"
    return (
        Entry(
            "num_trials", trials, f"four for each of {leaves} questions and some to begin with, and the untuned model"
        ),
        Entry("max_hours", 24.0, "the search ends then, whatever is left"),
        Entry("resources", resources, why),
        Entry("seed", 0),
    )
