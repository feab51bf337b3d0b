"""Specs for tests: a small run and a small search, each with the values that a test changes.

``run_spec(**{"model.family": "conv_ae", "losses": {"mse": 1.0}})``: keys are dotted paths. A value replaces
what stands there; ``...`` removes it. Keys of ``search_spec`` begin at the whole file: ``finetune.max_steps``.
"""

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from ftae.specs import FinetuneSpec, ProductionSpec, SearchSpec

if TYPE_CHECKING:
    from ftae.engine.training.checkpoint import EvalReport

RUN: dict[str, Any] = {
    "model": {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4},
    "data": {"source": "digits", "resolution": 16, "classes": [3, 7]},
    "losses": {"mse": 1.0, "kl": 1e-3},
    "optimizer": {"lr": 1e-2},
    "max_steps": 12,
    "num_evals": 2,
}
SEARCH: dict[str, Any] = {
    "name": "small",
    "finetune": RUN,
    "search_space": {"optimizer.lr": {"low": 1e-6, "high": 1e-2, "log": True}},
    "objective": {"metric": "val/psnr", "direction": "maximize"},
    "search": {"num_trials": 2, "scheduler": {"name": "fifo"}},
}


def run_dict(**changes: Any) -> dict[str, Any]:
    return _changed(RUN, changes)


def run_spec(**changes: Any) -> FinetuneSpec:
    return FinetuneSpec.model_validate(run_dict(**changes))


def search_dict(**changes: Any) -> dict[str, Any]:
    return _changed(SEARCH, changes)


def search_spec(**changes: Any) -> SearchSpec:
    return SearchSpec.model_validate(search_dict(**changes))


def small_search(**changes: Any) -> SearchSpec:
    """A search that also trains a classifier and keeps an average of the weights."""
    base = {
        "finetune.losses.ce": 0.1,
        "finetune.ema_half_life_fraction": 0.1,
        "finetune.metrics": ["psnr", "ssim", "accuracy"],
    }
    return search_spec(**base | changes)


def production_spec(name: str = "small", **changes: Any) -> ProductionSpec:
    return ProductionSpec.model_validate({"name": name, "finetune": run_dict(**changes)})


def _changed(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    result = deepcopy(base)
    for path, value in changes.items():
        # The keys of a search space are dotted themselves: everything behind the section is one key.
        *sections, key = path.split(".", 1) if path.startswith("search_space.") else path.split(".")
        holder = result
        for section in sections:
            holder = holder.setdefault(section, {})
        if value is ...:
            holder.pop(key, None)
        else:
            holder[key] = deepcopy(value)
    return result


def eval_report(step: int, psnr: float, **changes: Any) -> "EvalReport":
    """A report of a trial at ``step``; its files need not exist. ``changes``: values of its other fields."""
    from ftae.engine.training.checkpoint import EvalReport

    name = f"step-{step:08d}"
    fields: dict[str, Any] = {"step": step, "metrics": {"val/psnr": psnr}, "timing": {}}
    fields |= {"checkpoint": f"checkpoints/{name}" if step else None, "images": f"images/{name}.png"}
    return EvalReport(**fields | changes)
