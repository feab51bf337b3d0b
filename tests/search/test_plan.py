"""The plan that ``ftae validate`` prints."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from builders import search_dict
from PIL import Image

from ftae.engine.models.families import build_model
from ftae.engine.sizing import Probe
from ftae.engine.training.checkpoint import EvalReport
from ftae.engine.training.loop import finetune
from ftae.errors import FtaeError, SpecError
from ftae.search.plan import plan
from ftae.specs import ProductionSpec, SearchSpec
from ftae.specs.finetune.run import FinetuneSpec
from ftae.storage.journal import Journal


def search(**changes: Any) -> dict[str, Any]:
    """A search file; ``changes``: values by path, ``__`` between its parts."""
    base: dict[str, Any] = {
        "finetune.data": {"source": "digits", "resolution": 16},
        "finetune.freeze_depth": 1,
        "finetune.optimizer": {"lr": 1e-3},
        "finetune.batch_size": 8,
        "finetune.grad_accumulation": 2,
        "finetune.num_evals": 3,
        "finetune.metrics": ["psnr"],
        "search_space": {
            "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
            "batch_size": {"low": 4, "high": 16, "step": 4},
            "max_grad_norm": {"choices": [1.0, None]},
        },
        "search": {"num_trials": 9, "max_hours": 1.5, "keep_checkpoints": 2, "storage": "/no/such/place"},
    }
    return search_dict(**base | {path.replace("__", "."): value for path, value in changes.items()})


FORECAST = "a trial whose chance to beat the best is below 25% stops, as learned from all curves of this search"


def plan_of(**changes: Any) -> list[str]:
    return plan(SearchSpec.model_validate(search(**changes)))


def test_the_plan_of_a_search() -> None:
    lines = plan_of()
    assert lines[:11] == [
        "small: a valid search",
        "objective    maximize val/psnr",
        "trials       9 tuned + the untuned baseline, curve, at most 1.5 h; each 1 CPUs, 0 GPUs",
        "budget       about 4.2 full trainings",
        f"stopping     at steps 4, 8 of 12: {FORECAST}",
        "  optimizer.lr: 0.0001 .. 0.01, log",
        "  batch_size: 4 .. 16, linear, step 4",
        "  max_grad_norm: one of 1.0, None",
        "training     12 steps of 16 images, evaluated at 4, 8, 12",
        "losses       1 mse, 0.001 kl",
        "model        conv_vae, 3,529 of 3,605 parameters trainable (98%) in 4 of 5 stages",
    ]
    stages = [line.split() for line in lines[11:16]]
    assert [(s[0], s[1], s[2], s[4]) for s in stages] == [
        ("0", "encoder.down.0", "encoder", "frozen"),
        ("1", "bottleneck", "bottleneck", "trained"),
        ("2", "decoder.in", "decoder", "trained"),
        ("3", "decoder.up.0", "decoder", "trained"),
        ("4", "decoder.out", "decoder", "trained"),
    ]
    assert sum(int(s[3].replace(",", "")) for s in stages) == 3605
    assert lines[16:] == [
        "kl           0.001 per element, 0.064 in summed terms (LDM's convention)",  # times 256 pixels / 4 latents
        "beta         0.032; 1 is the VAE whose pixels are Gaussian of unit variance",  # half of that, by the Gaussian
        # 4 channels of 8x8, and a byte, of 1438 and 359 digits.
        "frozen cache training through encoder.down.0, about 1.47 MB; validation through encoder.down.0, about 368 KB",
        lines[19],
        "storage      /no/such/place/small",
        lines[21],
        "tracking     sqlite:////no/such/place/mlflow.db, experiment small",
        "warning: frozen stages keep random weights: model.pretrained is null",
    ]
    assert lines[19].startswith("checkpoints  the best 2 of the search, and the newest of running trials; each about ")
    assert lines[21].startswith("space        about ")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"finetune__freeze_depth": 0}, []),
        ({"finetune__frozen_cache_gb": 0.0}, []),
        (
            {"finetune__data": {"source": "digits", "resolution": 16, "flip": True}},
            [
                "frozen cache training none: images change from epoch to epoch (data.flip); "
                "validation through encoder.down.0, about 368 KB"
            ],
        ),
        (
            {"finetune__frozen_cache_gb": 1e-3},
            [
                "frozen cache training none: finetune.frozen_cache_gb leaves 1 MB, the smallest features "
                "take 1.47 MB; validation through encoder.down.0, about 368 KB"
            ],
        ),
    ],
)
def test_the_plan_says_how_much_of_the_frozen_start_is_stored(changes: dict[str, Any], expected: list[str]) -> None:
    assert [line for line in plan_of(**changes) if line.startswith("frozen cache")] == expected


def test_the_plan_says_that_activations_are_computed_again() -> None:
    line = "memory       activations of the stages are computed again: checkpoint_stages"
    assert line in plan_of(finetune__checkpoint_stages=True)
    assert line not in plan_of()


def test_the_size_of_a_checkpoint_is_about_right(tmp_path: Path) -> None:
    # Wide enough for the tensors to outweigh the files around them.
    changes: dict[str, Any] = {"finetune__model": {"family": "conv_vae", "channels": 32, "depth": 1, "latent_dim": 16}}
    [line] = [line for line in plan_of(**changes) if line.startswith("checkpoints")]
    size, unit = line.split()[-2:]
    spec = SearchSpec.model_validate(search(**changes)).finetune
    reports: list[EvalReport] = list(finetune(spec, tmp_path))
    assert reports[-1].checkpoint is not None
    taken = sum(path.stat().st_size for path in (tmp_path / reports[-1].checkpoint).iterdir())
    assert float(size) * {"KB": 1e3, "MB": 1e6}[unit] == pytest.approx(taken, rel=0.15)


def test_without_a_rung_every_trial_runs_to_its_end() -> None:
    for changes in ({"search__scheduler": {"name": "fifo"}}, {"finetune__num_evals": 1}):
        assert "stopping     never: every trial runs 12 steps" in plan_of(**changes)


def test_the_space_is_compared_with_the_quota() -> None:
    [line] = [line for line in plan_of(search__max_storage_gb=2.5) if line.startswith("space")]
    assert line.endswith(" a running trial (at most 2.5 GB, by search.max_storage_gb)")
    with pytest.raises(
        FtaeError, match=r"search\.max_storage_gb: 0\.0001 GB are allowed, the search takes about [\d.]+ MB"
    ):
        plan_of(search__max_storage_gb=1e-4)


def test_the_plan_of_a_begun_search_has_the_measurements_of_its_preflight(tmp_path: Path) -> None:
    begun = search(search__storage=str(tmp_path))
    (tmp_path / "small").mkdir()
    journal = Journal(tmp_path / "small")
    journal.append("open", search=SearchSpec.model_validate(begun).model_dump(mode="json"), digest="", facts={})
    assert not any(line.startswith("preflight") for line in plan_of(search__storage=str(tmp_path)))
    probe = Probe(step_seconds=0.02, eval_seconds=0.5, peak_bytes=3 * 10**8, memory_bytes=None, device="cpu", node="n1")
    journal.append("preflight", probe=asdict(probe))
    journal.close()
    last = (
        "preflight    a step 20 ms, peak memory 300 MB (cpu) on n1; about 2.2 s a full trial, "
        "0.0026 CPU hours the search"
    )
    assert last in plan_of(search__storage=str(tmp_path))


def test_the_plan_says_what_is_optimised() -> None:
    constrained = {"metric": "val/psnr", "direction": "maximize", "constraints": ["val/kl <= 400"]}
    two = [{"metric": "val/psnr", "direction": "maximize"}, {"metric": "val/kl", "direction": "minimize"}]
    asha = "at steps 4 of 12: best 1/3 go on"
    for objective, expected, stopping in (
        (constrained, "maximize val/psnr, where val/kl <= 400", f"at steps 4, 8 of 12: {FORECAST}"),
        ({"metrics": two}, "maximize val/psnr, minimize val/kl", asha),
    ):
        lines = plan_of(objective=objective, finetune__metrics=["psnr", "kl"])
        assert f"objective    {expected}" in lines
        assert f"stopping     {stopping}, by val/psnr alone" in lines


def test_the_plan_says_which_params_depend_on_others() -> None:
    space = {
        "losses.kl": {"low": 1e-5, "high": 1e-2, "log": True, "or_off": True},
        "losses.kl_capacity": {"low": 1, "high": 25, "or_off": True},
        "schedule.name": {"choices": ["constant", "cyclical"]},
        "schedule.num_cycles": {"low": 2, "high": 5},
    }
    lines = [line for line in plan_of(search_space=space) if line.startswith("  ") and ": " in line]
    assert lines == [
        "  losses.kl: 1e-05 .. 0.01, log, or off (0)",
        "  losses.kl_capacity: 1 .. 25, linear, or off (null), where losses.kl is on",
        "  schedule.name: one of constant, cyclical",
        "  schedule.num_cycles: 2 .. 5, linear, where schedule.name is cyclical",
    ]


def test_another_tracking_server_is_named() -> None:
    lines = plan_of(tracking={"uri": "http://there:5000", "experiment": "ours"})
    assert "tracking     http://there:5000, experiment ours" in lines


def test_the_plan_of_a_training_run_has_no_trials() -> None:
    lines = plan(ProductionSpec.model_validate({key: search()[key] for key in ("name", "finetune")}))
    assert lines[:3] == [
        "small: a valid training run",
        "training     12 steps of 16 images, evaluated at 4, 8, 12",
        "losses       1 mse, 0.001 kl",
    ]
    assert not any(line.startswith(("stopping", "storage", "checkpoints")) for line in lines)


def test_a_plan_writes_no_files(tmp_path: Path) -> None:
    plan_of(search__storage=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- refusals


def test_missing_folders_are_named_together() -> None:
    data = {"source": "image_folder", "train": "no/photos", "val": "no/others", "resolution": 16}
    with pytest.raises(SpecError) as refusal:
        plan_of(finetune__data=data)
    assert refusal.value.problems == (
        "finetune.data.train: no/photos is not a folder",
        "finetune.data.val: no/others is not a folder",
    )


def test_a_freeze_depth_beyond_the_stages_is_refused() -> None:
    space = {"freeze_depth": {"low": 0, "high": 5}}
    with pytest.raises(FtaeError, match=r"search_space\.freeze_depth: with 5: .*freeze_depth.*5"):
        plan_of(search_space=space)
    plan_of(search_space={"freeze_depth": {"low": 0, "high": 4}})


def test_a_model_that_cannot_take_the_images_is_refused() -> None:
    with pytest.raises(FtaeError):
        plan_of(finetune__data={"source": "digits", "resolution": 17})


@pytest.mark.parametrize("labelled", [True, False])
def test_missing_labels_are_refused_where_they_are_needed(tmp_path: Path, labelled: bool) -> None:
    for name in ("cats", "dogs"):
        place = tmp_path / "photos" / name if labelled else tmp_path / "photos"
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16)).save(place / f"{name}.png")
    changes: dict[str, Any] = {
        "finetune__data": {"source": "image_folder", "train": str(tmp_path / "photos"), "resolution": 16},
        "finetune__losses": {"mse": 1.0, "ce": 0.1},
        "finetune__metrics": ["psnr", "accuracy"],
    }
    if labelled:
        assert any(line.split()[1:3] == ["head", "head"] for line in plan_of(**changes))
    else:
        with pytest.raises(FtaeError, match=r"losses\.ce needs labels"):
            plan_of(**changes)


# --------------------------------------------------------------------------------------- without torch

WITHOUT_TORCH = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "ray", "optuna", "mlflow", "diffusers"):
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
try:
    import torch
except ImportError:
    pass
else:
    sys.exit("torch is not hidden")
sys.argv = ["ftae", "validate", sys.argv[1]]
from ftae.cli.main import main
main()
"""


def test_without_torch_everything_but_the_model_is_checked(tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(search()))
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "search.yaml")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "model        not checked: torch is not installed here" in lines
    assert f"stopping     at steps 4, 8 of 12: {FORECAST}" in lines
    assert "checkpoints  the best 2 of the search, and the newest of running trials" in lines
    assert not any(line.startswith("space") for line in lines)


def test_the_plan_says_what_the_data_ask_of_the_model() -> None:
    data = {"source": "digits", "resolution": 16, "degrade": {"noise": 0.1, "blur": 1.5}, "labelled_fraction": 0.05}
    data |= {"anomaly_classes": [7, 8], "replay": {"source": "digits", "share": 0.25}}
    lines = plan_of(finetune__data=data, finetune__losses={"mse": 1.0, "ce": 0.1})
    assert (
        "degraded     the input of the model has blur 1.5, noise 0.1; it is measured against the clean images" in lines
    )
    assert "replay       2 of 8 images a batch from digits; val_source/psnr" in lines
    assert "anomalies    7, 8: never trained on; auroc says how well they stand out" in lines
    assert "labels       0.05 of the training images of each class, all of validation" in lines


def test_a_missing_folder_of_replayed_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    replay = {"source": "image_folder", "share": 0.1, "train": str(tmp_path / "t"), "val": str(tmp_path / "v")}
    with pytest.raises(SpecError, match=r"finetune\.data\.replay\.train: .* is not a folder") as error:
        plan_of(finetune__data={"source": "digits", "resolution": 16, "replay": replay})
    assert "replay.val" not in str(error.value)


def test_the_plan_says_beta_and_its_searched_range() -> None:
    kl = {"low": 1e-4, "high": 1e-2, "log": True}
    lines = plan_of(search_space={"losses.kl": kl})
    # 256 pixels over 4 latents, halved by the Gaussian's log-likelihood
    assert (
        "beta         0.032, searched from 0.0032 to 0.32; 1 is the VAE whose pixels are Gaussian of unit variance"
        in lines
    )
    bernoulli = plan_of(finetune__losses={"bce": 2.0, "kl": 1e-3})
    assert "beta         0.032; 1 is the VAE whose pixels are Bernoulli" in bernoulli
    two = plan_of(finetune__losses={"bce": 1.0, "mse": 1.0, "kl": 1e-3})
    assert not any(line.startswith("beta") for line in two)
    assert not any(line.startswith(("beta", "kl")) for line in plan_of(finetune__losses={"mse": 1.0}))


def test_the_plan_says_which_stages_are_new(tmp_path: Path) -> None:
    model = {"family": "conv_vae", "channels": 4, "depth": 1, "latent_dim": 4}
    small = FinetuneSpec.model_validate(search(finetune__model=model)["finetune"])
    build_model(small, 10).save(tmp_path)
    data = {"source": "digits", "resolution": 32}
    given = {"family": "conv_vae", "pretrained": str(tmp_path), "resolution_adapters": 1}
    lines = plan_of(finetune__model=given, finetune__data=data, finetune__freeze_depth=0)
    assert f"new          encoder.outer.0, decoder.outer.0; the others come from {tmp_path}" in lines
    states = [line.split()[4:] for line in lines if line.startswith("  ") and ".outer." in line]
    assert states == [["trained,", "new"]] * 2
    assert not any(line.startswith("new") for line in plan_of(finetune__model=model | {"resolution_adapters": 1}))


@pytest.mark.parametrize(
    ("codebook", "losses", "expected"),
    [
        ("ema", {"commitment": 0.25}, "codes        128; effective weights: 0.25 commitment, a moving average"),
        ("gradient", {"commitment": 0.5, "codebook": 2.0},
         "codes        128; effective weights: 0.5 commitment, 2 codebook"),
    ],
)  # fmt: skip
def test_the_plan_says_how_the_codes_are_trained(codebook: str, losses: dict[str, float], expected: str) -> None:
    model = {"family": "vq_vae", "codebook": codebook}
    assert expected in plan_of(finetune__model=model, finetune__losses={"mse": 1.0, **losses}, finetune__freeze_depth=0)
