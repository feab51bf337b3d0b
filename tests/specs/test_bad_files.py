"""What a user reads when a file is wrong: one line for each fault, at the right place, about the file."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from spec_classes import specs_below

from ftae.errors import SpecError
from ftae.specs import Range, SearchSpec
from ftae.specs.files import dump, load_any, load_search
from ftae.specs.reading.problems import problems
from ftae.specs.reading.schema import alternatives
from ftae.specs.search.lint import missing_folders

# Line numbers below count from here: name is line 1, tracking line 33.
GOOD = """\
name: photos-kl
finetune:
  model: {family: autoencoder_kl, pretrained: org/vae}
  data:
    source: image_folder
    train: photos
    val: 0.1
    resolution: 256
  freeze_depth: 7
  losses: {mse: 1.0, kl: 2.0e-8, tv: 0.0}
  optimizer:
    name: adamw
    lr: 1.0e-4
    lr_multipliers: {encoder: 0.1}
  max_steps: 2000
  metrics:
    - psnr
    - ssim
    - kl
search_space:
  optimizer.lr: {low: 1e-6, high: 2.0e-4, log: true}
  losses.tv:
    choices:
      - 0.0
      - 1e-4
  freeze_depth: {low: 0, high: 12}
  max_grad_norm: {choices: [0.5, 1.0, null]}
objective: {metric: val/psnr, direction: maximize}
search:
  num_trials: 32
  scheduler: {name: asha, grace_fraction: 0.33}
  resources: {gpus: 1, cpus: 4}
tracking: {uri: null, experiment: photos-kl}
"""
MODEL = "{family: autoencoder_kl, pretrained: org/vae}"
LR = "{low: 1e-6, high: 2.0e-4, log: true}"
CLIP = "max_grad_norm: {choices: [0.5, 1.0, null]}"

# (old text, new text, the beginning of the only problem that must be found)
ONE_FAULT = [
    # the top of the file
    ("name: photos-kl\n", "name: photos kl\n", "1: name: must be of letters, digits, dot, dash and underscore"),
    ("name: photos-kl\n", "name: 2024-01-01\n", "1: name: must be text in quotes, got 2024-01-01"),
    ("name: photos-kl\n", "name: 2024-13-45\n", "1: name: must be text in quotes, got 2024-13-45"),
    ("name: photos-kl\n", "name: 2024-01-01 10:00:00\n", "1: name: must be text in quotes, got 2024-01-01 10:00:00"),
    ("name: photos-kl\n", "name: no\n", "1: name: must be text in quotes, got no"),
    ("name: photos-kl\n", "name: 1e4\n", "1: name: must be text in quotes, got 10000.0"),
    ("name: photos-kl\n", "name: mlflow.db\n", "1: name: 'mlflow.db' is the name of the embedded MLflow store"),
    ("name: photos-kl\n", "name: MLflow.DB-wal\n",
     "1: name: 'MLflow.DB-wal' is the name of the embedded MLflow store"),
    ("name: photos-kl\n", "name: mlartifacts\n", "1: name: 'mlartifacts' is the name of the embedded MLflow store"),
    ("uri: null", "uri: ./mlruns", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE (or a database's, "
     "postgresql, mysql, mssql), got './mlruns'"),
    ("uri: null", "uri: 'file:///data/mlruns'", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("uri: null", "uri: 'sqlite:mlflow.db'", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("uri: null", "uri: sqlite://", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("uri: null", "uri: databricks", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("uri: null", "uri: gopher://host", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("uri: null", "uri: 'http:///x'", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("uri: null", "uri: localhost:5000", "33: tracking.uri: must be http(s)://HOST or sqlite:///FILE"),
    ("experiment: photos-kl", f"experiment: {'x' * 501}", "33: tracking.experiment: must have at most 500 characters"),
    ("experiment: photos-kl", "experiment: ''", "33: tracking.experiment: must have at least 1 character"),
    ("name: photos-kl\n", "", "1: name: required"),
    ("name: photos-kl\n", f"name: {'x' * 81}\n", "1: name: must have at most 80 characters"),
    ("tracking:", "trackin:", "33: trackin: unknown key, must be one of name, finetune, search_space, objective, "
     "search, tracking, did you mean 'tracking'?"),
    ("tracking: {", "tracking: [{", "33: not valid YAML: "),
    ("tracking: {uri: null, experiment: photos-kl}", "tracking: 3", "33: tracking: must be a mapping, got 3"),
    # unions: the choices are the models' own
    ("autoencoder_kl,", "autoencoder_k,", "3: finetune.model.family: must be one of mlp_vae, conv_ae, conv_vae, "
     "mlp_cvae, conv_cvae, hierarchical_vae, vq_vae, vq_vae_2, unet_translator, resnet_translator, "
     "dcgan, stylegan2, cyclegan, autoencoder_kl, autoencoder_kl_flux2, asymmetric_autoencoder_kl, "
     "autoencoder_tiny, autoencoder_dc, vq_model, package.module:attr, got 'autoencoder_k', "
     "did you mean 'autoencoder_kl'?"),
    ("family: autoencoder_kl, ", "", "3: finetune.model.family: required, must be one of mlp_vae,"),
    (MODEL, "org/vae", "3: finetune.model: must be a mapping, got 'org/vae'"),
    (MODEL, "{family: autoencoder_kl}", "3: finetune.model.pretrained: required"),
    (MODEL, "{family: 'my.module:build'}", "3: finetune.model.image_range: required, must be one of 0..1, -1..1"),
    (MODEL, "{family: 'my.module:build', image_range: [0, 255]}",
     "3: finetune.model.image_range: must be one of 0..1, -1..1, got [0, 255]"),
    (MODEL, "{family: conv_ae, channels: 100000000000000000000}",
     "3: finetune.model.channels: must be less than or equal to 65536, got 100000000000000000000"),
    (MODEL, "{family: mlp_vae, hidden: 65537}",
     "3: finetune.model.hidden: must be less than or equal to 65536, got 65537"),
    (MODEL, "{family: 'my.module:', image_range: 0..1}",
     "3: finetune.model.family: must be written package.module:attr"),
    (MODEL, "{family: 'm:f', image_range: 0..1, kwargs: {day: 2024-01-01}}",
     "3: finetune.model.kwargs.day: must be text, a number, true, false, null, or a list or mapping of these"),
    ("    source: image_folder\n", "",
     "4: finetune.data.source: required, must be one of image_folder, archive, shards, pairs, unpaired, arrays, "
     "digits, digit_edges, digit_domains, photos, shapes"),
    # data
    ("val: 0.1", "val: 1.5", "7: finetune.data.val: must be less than 1, got 1.5"),
    ("resolution: 256", "resolution: 256.5", "8: finetune.data.resolution: must be a whole number, got 256.5"),
    ("resolution: 256", "resolution: 4", "8: finetune.data.resolution: must be greater than or equal to 8, got 4"),
    ("resolution: 256", "resolution: 256\n    shift: none",
     "9: finetune.data.shift: unknown key, must be one of resolution"),
    ("resolution: 256", "resolution: 256\n    flip: perhaps",
     "9: finetune.data.flip: must be true or false, got 'perhaps'"),
    ("resolution: 256", "resolution: 256\n    random_crop_from: 100",
     "9: finetune.data.random_crop_from: must be larger than resolution (256) to have an effect, got 100"),
    # the run
    ("freeze_depth: 7", "freze_depth: 7",
     "9: finetune.freze_depth: unknown key, must be one of model, data, freeze_depth"),
    ("freeze_depth: 7", "freeze_depth: 7\n  freeze: encoder", "10: finetune.freeze: must be a list, got 'encoder'"),
    ("mse: 1.0, kl: 2.0e-8", "mse: 0.0", "10: finetune.losses: at least one of mse, l1, huber, bce, kl, tv, edge, "
     "ssim, ms_ssim, lpips, vgg, ce, latent_anchor, l2_sp, commitment, codebook, adversarial, cycle, identity needs a "
     "weight above 0"),
    ("mse: 1.0", "bce: 1.0", "10: finetune.losses.bce: needs outputs inside the image range, autoencoder_kl does not"),
    ("mse: 1.0", "mse: .nan", "10: finetune.losses.mse: must be a finite number, got nan"),
    ("mse: 1.0", "mse: much", "10: finetune.losses.mse: must be a number, got 'much'"),
    ("mse: 1.0", "mse: null", "10: finetune.losses.mse: must be a number, got null"),
    ("name: adamw", "name: adam\n    name: adamw", "13: finetune.optimizer.name: key given twice"),
    ("name: adamw", "name: sgd\n    betas: [0.9, 0.99]", "13: finetune.optimizer.betas: has no effect on sgd"),
    ("name: adamw", "name: adamw\n    momentum: 0.9", "13: finetune.optimizer.momentum: has no effect on adamw"),
    ("lr: 1.0e-4", "lr: 0", "13: finetune.optimizer.lr: must be greater than 0, got 0"),
    ("{encoder: 0.1}", "{encoder: 0}", "14: finetune.optimizer.lr_multipliers.encoder: must be greater than 0, got 0"),
    ("{encoder: 0.1}", "{1: 0.1}", "14: finetune.optimizer.lr_multipliers.1: must be text in quotes, got 1"),
    ("{encoder: 0.1}", "[0.1]", "14: finetune.optimizer.lr_multipliers: must be a mapping, got [0.1]"),
    ("max_steps: 2000", "max_steps: 3\n  num_evals: 9", "16: finetune.num_evals: must not exceed max_steps (3), got 9"),
    ("max_steps: 2000", "max_steps: 2000\n  schedule: {name: constant, final_fraction: 0.1}",
     "16: finetune.schedule.final_fraction: has no effect on a constant schedule, it needs linear or cosine"),
    ("max_steps: 2000", "max_steps: 2000\n  schedule: {name: cosine, num_cycles: 2}",
     "16: finetune.schedule.num_cycles: has no effect on a cosine schedule, it needs cyclical"),
    ("    - ssim\n", "    - ssimm\n", "18: finetune.metrics.1: must be one of mse, l1, mae, psnr, ssim, kl, "
     "active_units, accuracy, latent_drift, input_psnr, auroc, codebook_usage, perplexity, sharpness, edge_distance, "
     "d_overfit, ms_ssim, linear_probe, mig, dci, lpips, rfid, fid, fid_train, fid_floor, kid, kid_train, kid_floor, "
     "precision, precision_train, precision_floor, recall, recall_train, recall_floor, diversity, diversity_floor, "
     "memorised, cycle_l1, identity_l1, change, got 'ssimm', did you mean 'ssim'?"),
    ("    - ssim\n", "    - psnr\n", "18: finetune.metrics.1: psnr is given twice"),
    ("    - ssim\n", "    - accuracy\n", "18: finetune.metrics.1: accuracy needs the classification head"),
    ("max_steps: 2000\n  metrics:\n    - psnr\n    - ssim\n    - kl\n", "max_steps: 2000\n  metrics: []\n",
     "16: finetune.metrics: must have at least 1 item, got []"),
    ("    - ssim\n", "    - SSIM\n", "18: finetune.metrics.1: must be one of mse, l1, mae, psnr, ssim, kl,"),
    ("  metrics:\n    - psnr\n    - ssim\n    - kl\n", "  metrics: [PSNR]\n",
     "16: finetune.metrics.0: must be one of mse, l1, mae, psnr, ssim"),
    # what YAML makes of it
    ("mse: 1.0", "mse: true", "10: finetune.losses.mse: must be a number, got true"),
    ("mse: 1.0", "mse: yes", "10: finetune.losses.mse: must be a number, got yes"),
    ("mse: 1.0", "mse: Off", "10: finetune.losses.mse: must be a number, got Off"),
    ("mse: 1.0", "mse: 1:30",
     "10: finetune.losses.mse: YAML reads 1:30 as 90: write that number, or put text in quotes"),
    ("mse: 1.0", "mse: -1:30.5", "10: finetune.losses.mse: YAML reads -1:30.5 as -90.5: write that"),
    ("mse: 1.0", "mse: .inf", "10: finetune.losses.mse: must be a finite number, got inf"),
    ("mse: 1.0", "mse: 1e999", "10: finetune.losses.mse: must be a finite number, got inf"),
    ("freeze_depth: 7", "freeze_depth: 010", "9: finetune.freeze_depth: YAML reads 010 as 8: write that"),
    ("freeze_depth: 7", "freeze_depth: on", "9: finetune.freeze_depth: must be a whole number, got on"),
    ("val: 0.1", "val: true", "7: finetune.data.val: must be text in quotes, got true"),
    ("{encoder: 0.1}", "{encoder: yes}", "14: finetune.optimizer.lr_multipliers.encoder: must be a number, got yes"),
    ("name: adamw", "name: adamw\n    betas: [0.9, no]", "13: finetune.optimizer.betas.1: must be a number, got no"),
    ("    source: image_folder\n", "    source: image_folder\n    anomaly_classes: [01, 09]\n",
     "6: finetune.data.anomaly_classes.0: YAML reads 01 as 1: write that number, or put text in quotes"),
    ("high: 12}", "high: true}", "26: search_space.freeze_depth.high: must be a number, got true"),
    ("high: 12}", "high: 12, step: yes}", "26: search_space.freeze_depth.step: must be a number, got true"),
    ("      - 1e-4\n", "      - on\n", "25: search_space.losses.tv.choices.1: must be a number, got"),
    ("num_trials: 32", "num_trials: true", "30: search.num_trials: must be a whole number, got true"),
    ("num_trials: 32", "num_trials: 32\n  max_hours: 1:30", "31: search.max_hours: YAML reads 1:30 as 90"),
    ("gpus: 1,", "gpus: yes,", "32: search.resources.gpus: must be a number, got yes"),
    ("maximize}", "maximize, constraints: [val/psnr >= 30, val/psnr <= 20]}",
     "28: objective.constraints.1: no trial can keep both val/psnr >= 30 and val/psnr <= 20"),
    ("maximize}", "maximize, constraints: [val/ssim <= 0.1, val/psnr >= 5, val/ssim >= 0.2]}",
     "28: objective.constraints.2: no trial can keep both val/ssim >= 0.2 and val/ssim <= 0.1"),
    ("maximize}", "maximize, constraints: [val/psnr >= 30, val/psnr >= 20]}",
     "28: objective.constraints.1: val/psnr >= 20 and val/psnr >= 30 bound val/psnr on the same side"),
    # the search space
    (LR, "{low: 1e-3, high: 2e-4}", "21: search_space.optimizer.lr.high: must be greater than low (0.001), got 0.0002"),
    (LR, "{low: 0, high: 2e-4, log: true}", "21: search_space.optimizer.lr.log: a log range needs low > 0, got 0"),
    (LR, "{low: tiny, high: 2e-4}", "21: search_space.optimizer.lr.low: must be a number, got 'tiny'"),
    (LR, "{low: 1e-6}", "21: search_space.optimizer.lr.high: required"),
    (LR, "{low: 1e-6, high: 2e-4, log: true, step: 1e-6}",
     "21: search_space.optimizer.lr.step: has no meaning on a log"),
    (LR, "{low: 1e-6, high: 2e-4, step: 1}",
     "21: search_space.optimizer.lr.step: must be greater than 0 and fit between"),
    (LR, "{low: 1e-6, high: 2e-4, lag: true}",
     "21: search_space.optimizer.lr.lag: unknown key, must be one of low, high, "
     "log, step, or_off, did you mean 'log'?"),
    (LR, "{choices: [1e-5, 2e-5]}", "21: search_space.optimizer.lr: must contain finetune's own value (0.0001)"),
    (LR, "5", "21: search_space.optimizer.lr: must be a mapping, got 5"),
    ("      - 1e-4\n", "      - '0.0'\n", "25: search_space.losses.tv.choices.1: choices must differ, got 0.0 twice"),
    ("      - 1e-4\n", "      - null\n", "25: search_space.losses.tv.choices.1: must be a number, got null"),
    ("      - 1e-4\n", "      - -1\n",
     "25: search_space.losses.tv.choices.1: must be greater than or equal to 0, got -1"),
    ("      - 1e-4\n", "", "23: search_space.losses.tv.choices: must have at least 2 items, got [0.0]"),
    ("high: 12}", "high: 12.5}", "26: search_space.freeze_depth.high: must be a whole number, got 12.5"),
    ("high: 12}", "high: 12, step: 0.5}", "26: search_space.freeze_depth.step: must be a whole number, got 0.5"),
    ("high: 12}", "high: 12, step: 2}", "26: search_space.freeze_depth: must contain finetune's own value (7)"),
    ("max_grad_norm: {", "max_grad_nrom: {", "27: search_space.max_grad_nrom: names no leaf of finetune: unknown key "
     "'max_grad_nrom', must be one of model, data,"),
    ("max_grad_norm: {", "optimizer.lrr: {",
     "27: search_space.optimizer.lrr: names no leaf of finetune: unknown key 'lrr' "
     "in optimizer, must be one of name, lr, lr_multipliers, weight_decay, betas, momentum, did you mean 'lr'?"),
    ("max_grad_norm: {", "optimizer: {", "27: search_space.optimizer: names no leaf of finetune: a whole section"),
    ("max_grad_norm: {", "optimizer.lr_multipliers: {", "27: search_space.optimizer.lr_multipliers: names no leaf of "
     "finetune: a whole mapping"),
    ("max_grad_norm: {", "optimizer.lr.x: {",
     "27: search_space.optimizer.lr.x: names no leaf of finetune: optimizer.lr is"),
    ("max_grad_norm: {", "model.hidden: {",
     "27: search_space.model.hidden: names no leaf of finetune: unknown key 'hidden' "
     "in model, must be one of pretrained, subfolder, family"),
    (CLIP, "max_steps: {low: 1000, high: 2000}", "27: search_space.max_steps: cannot be searched"),
    (CLIP, "optimizer.name: {low: 0, high: 1}", "27: search_space.optimizer.name: low and high need a numeric leaf"),
    (CLIP, "precision: {choices: [fp32, fp16]}",
     "27: search_space.precision.choices.1: must be one of fp32, bf16, got 'fp16'"),
    (CLIP, "optimizer.lr_multipliers.decoder: {low: 0.1, high: 1}",
     "27: search_space.optimizer.lr_multipliers.decoder: must contain finetune's own value (null)"),
    (CLIP, "losses.mse: {low: 0, high: 1}\n  losses.kl: {low: 0, high: 1}",
     "28: search_space.losses.kl: with 0.0 and losses.mse 0.0: losses: at least one of mse, l1,"),
    # the objective and the search
    ("val/psnr", "val/pnsr",
     "28: objective.metric: finetune.metrics lacks it, must be one of val/psnr, val/ssim, val/kl, "
     "got 'val/pnsr', did you mean 'val/psnr'?"),
    ("val/psnr", "train/loss",
     "28: objective.metric: a weighted loss cannot be compared between trials, must be one of"),
    ("maximize", "maximise",
     "28: objective.direction: must be one of minimize, maximize, got 'maximise', did you mean"),
    (", direction: maximize", "", "28: objective.direction: required, must be one of minimize, maximize"),
    ("num_trials: 32", "num_trials: 0", "30: search.num_trials: must be greater than or equal to 1, got 0"),
    ("num_trials: 32", "num_trails: 32",
     "30: search.num_trails: unknown key, must be one of num_trials, budget, max_hours"),
    ("name: asha", "name: ashaa",
     "31: search.scheduler.name: must be one of forecast, asha, fifo, got 'ashaa', did you mean 'asha'?"),
    ("name: asha", "name: fifo", "31: search.scheduler.grace_fraction: unknown key, must be one of name"),
    ("gpus: 1,", "gpus: 2,", "32: search.resources.gpus: must be at most 1, the share of one process, got 2; "
     "gpus_per_trial (or workers) trains a trial on several"),
    ("gpus: 1,", "gpus: 0.5, workers: 2,", "32: search.resources.workers: must be 1 where a trial gets a fraction "
     "of a GPU (gpus: 0.5), got 2"),
    ("gpus: 1,", "gpus: 1, gpus_per_trial: 4,", "32: search.resources.gpus_per_trial: stands for gpus: 1 and "
     "workers: 4, leave out gpus"),
    ("gpus: 1,", "gpus_per_trial: 0,", "32: search.resources.gpus_per_trial: must be greater than or equal to 1"),
    ("gpus: 1,", "gpus_per_trial: 1.5,", "32: search.resources.gpus_per_trial: must be a whole number, got 1.5"),
    ("gpus: 1,", "gpus_per_trial: true,", "32: search.resources.gpus_per_trial: must be a whole number"),
    ("gpus: 1,", "workers: 3,", "32: search.resources.workers: 3 workers cannot share batch_size 8 evenly"),
]  # fmt: skip


def problems_of(path: Path, text: str, overrides: tuple[str, ...] = ()) -> list[str]:
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_any(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]


def replaced(old: str, new: str, text: str = GOOD) -> str:
    assert text.count(old) == 1, f"{old!r} must occur once"
    return text.replace(old, new)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.yaml"


def test_the_file_under_the_table_is_good(path: Path) -> None:
    path.write_text(GOOD)
    assert load_search(path).name == "photos-kl"


@pytest.mark.parametrize(("old", "new", "expected"), ONE_FAULT, ids=[expected[:60] for _, _, expected in ONE_FAULT])
def test_one_fault_gives_one_line(path: Path, old: str, new: str, expected: str) -> None:
    found = problems_of(path, replaced(old, new))
    assert len(found) == 1, found
    assert found[0].startswith(expected)
    # A line is complete by itself, and speaks neither of Python nor of pydantic.
    assert "\n" not in found[0]
    assert not re.search(r"Input|should|a valid|instance of|\.image_folder|\.autoencoder_kl", found[0])


def test_all_faults_of_a_file_come_at_once_in_the_order_of_its_lines(path: Path) -> None:
    edits = [
        ("val: 0.1", "val: -2"),
        ("mse: 1.0", "bce: 1.0"),
        ("lr: 1.0e-4", "lrr: 1.0e-4"),
        ("    - ssim\n", "    - psnr\n"),
        (LR, "{low: 1e-3, high: 2e-4}"),
        ("max_grad_norm: {", "max_grad_nrom: {"),
        ("val/psnr", "val/ssim"),
        ("num_trials: 32", "num_trials: 32\n  num_trials: 33"),
        ("tracking:", "trackin:"),
    ]
    text = GOOD
    for old, new in edits:
        text = replaced(old, new, text)
    starts = [re.match(r"\d+: \S+: ", line).group() for line in problems_of(path, text)]  # type: ignore[union-attr]
    assert starts == [
        "7: finetune.data.val: ",
        "10: finetune.losses.bce: ",
        "11: finetune.optimizer.lr: ",
        "13: finetune.optimizer.lrr: ",
        "18: finetune.metrics.1: ",
        "21: search_space.optimizer.lr.high: ",
        "27: search_space.max_grad_nrom: ",
        "28: objective.metric: ",
        "31: search.num_trials: ",
        "34: trackin: ",
    ]


def test_without_a_valid_finetune_the_objective_is_checked_against_the_metrics_in_the_file(path: Path) -> None:
    no_lr = replaced("    lr: 1.0e-4\n", "")
    assert problems_of(path, replaced("val/psnr", "val/mse", no_lr))[1].startswith(
        "27: objective.metric: finetune.metrics lacks it, must be one of val/psnr, val/ssim, val/kl, got 'val/mse'"
    )
    # A misspelt metric may be the one the objective means.
    both = replaced("    - psnr\n", "    - pnsr\n", no_lr)
    assert [line.partition(": ")[2].partition(":")[0] for line in problems_of(path, both)] == [
        "finetune.optimizer.lr",
        "finetune.metrics.0",
    ]


def test_without_a_valid_family_a_leaf_of_any_family_passes(path: Path) -> None:
    text = replaced("autoencoder_kl,", "autoencoder_k,")
    assert len(problems_of(path, replaced("max_grad_norm: {", "model.subfolder: {", text))) == 1
    assert len(problems_of(path, replaced("max_grad_norm: {", "model.subfoldr: {", text))) == 2


def test_long_and_odd_values_stay_on_one_short_line(path: Path) -> None:
    (line,) = problems_of(path, replaced("{encoder: 0.1}", f"[{', '.join(['0.123456'] * 100)}]"))
    assert line.endswith("...")
    assert len(line) < 200
    (line,) = problems_of(path, replaced("{encoder: 0.1}", '{"a\\nb": -1}'))
    assert line == "14: finetune.optimizer.lr_multipliers.'a\\nb': must be greater than 0, got -1"


def test_overrides_are_named_by_their_text_and_come_last(path: Path) -> None:
    overrides = ("losses.kll=1", "optimizer.lr=0", "name=a b", "optimizr.lr=1", "nothing", "metrics.0=psnr", "seed=[1")
    found = problems_of(path, replaced("val: 0.1", "val: -2"), overrides)
    assert found[0] == "7: finetune.data.val: must be greater than or equal to 1, got -2"
    assert [line.partition(", ")[0] for line in found[1:]] == [
        "--set losses.kll=1: unknown key 'kll' in finetune.losses",
        "--set optimizer.lr=0: finetune.optimizer.lr: must be greater than 0",
        "--set name=a b: name: must be of letters",
        "--set optimizr.lr=1: unknown key",
        "--set nothing: must be path=value",
        "--set metrics.0=psnr: finetune.metrics is set as a whole and has no '0'",
        "--set seed=[1: the value is not valid YAML: while parsing a flow sequence expected ',' or ']'",
    ]
    assert found[1].endswith("did you mean 'kl'?")
    assert found[4].endswith("did you mean 'optimizer'?")


def test_the_override_that_created_or_replaced_a_section_is_named(path: Path) -> None:
    assert problems_of(path, GOOD, ("schedule.warmup_fraction=0.1", "schedule.name=cosin"))[0].startswith(
        "--set schedule.name=cosin: finetune.schedule.name: must be one of constant"
    )
    assert problems_of(path, GOOD, ("optimizer={name: sgd}",)) == [
        "--set optimizer={name: sgd}: finetune.optimizer.lr: required"
    ]
    assert problems_of(path, GOOD, ("optimizer={foo: 1, lr: 1e-4}", "optimizer.lr=-1")) == [
        "--set optimizer={foo: 1, lr: 1e-4}: finetune.optimizer.foo: unknown key, must be one of name, lr, "
        "lr_multipliers, weight_decay, betas, momentum",
        "--set optimizer.lr=-1: finetune.optimizer.lr: must be greater than 0, got -1",
    ]
    # The key of the file is at fault here, not the override that makes it one.
    assert problems_of(path, GOOD, ("data.source=photos",))[0].startswith("6: finetune.data.train: unknown key")


def test_a_metric_in_capitals_is_recognised(path: Path) -> None:
    (line,) = problems_of(path, replaced("    - ssim\n", "    - SSIM\n"))
    assert line.endswith("got 'SSIM', did you mean 'ssim'?")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optimizer.lr=true", "finetune.optimizer.lr: must be a number, got true"),
        ("losses.mse=yes", "finetune.losses.mse: must be a number, got true"),
        ("search.max_hours=1:30", "YAML reads 1:30 as 90: write that"),
        ("freeze_depth=010", "YAML reads 010 as 8: write that"),
        ("name=2024-01-02", "name: must be text in quotes, got 2024-01-02"),
        ("search_space.freeze_depth.high=yes", "search_space.freeze_depth.high: must be a number, got true"),
        ("metrics=[PSNR]", "finetune.metrics.0: must be one of mse,"),
    ],
)
def test_an_override_is_read_as_the_file_is(path: Path, override: str, expected: str) -> None:
    (line,) = problems_of(path, GOOD, (override,))
    assert line.startswith(f"--set {override}: {expected}")


def test_equal_bounds_leave_a_value(path: Path) -> None:
    path.write_text(replaced("maximize}", "maximize, constraints: [val/ssim >= 0.5, val/ssim <= 0.5]}"))
    assert len(load_search(path).objective.constraints) == 2


def test_numbers_are_numbers_wherever_they_stand(path: Path) -> None:
    own = "{family: 'm:f', image_range: 0..1, kwargs: {rate: 1e-4, deep: [2E3, {x: -.5e1, y: '1e-4', z: 0x10}]}}"
    path.write_text(replaced(MODEL, own))
    spec = load_search(path)
    kwargs = spec.finetune.model_dump()["model"]["kwargs"]
    assert kwargs == {"rate": 1e-4, "deep": [2000.0, {"x": -5.0, "y": "1e-4", "z": 16}]}
    path.write_text(dump(spec))
    assert load_search(path) == spec


NUMBERS = [
    (spec_type, name)
    for spec_type in sorted(specs_below(SearchSpec, {Range}), key=lambda kind: kind.__name__)
    for name, field in spec_type.model_fields.items()
    if {int, float} & set(kinds := alternatives(field.annotation)) and bool not in kinds
]


@pytest.mark.parametrize(("spec_type", "name"), NUMBERS)
def test_no_number_takes_a_truth_value(spec_type: type[BaseModel], name: str) -> None:
    for value in (True, False):
        with pytest.raises(ValidationError) as refusal:
            spec_type.model_validate({name: value})
        rules = [rule for location, rule in problems(spec_type, refusal.value) if location == (name,)]
        assert rules
        assert all("number" in rule and f"got {str(value).lower()}" in rule for rule in rules)


def test_a_missing_folder_has_its_place(path: Path, tmp_path: Path) -> None:
    def found(*overrides: str) -> list[str]:
        with pytest.raises(SpecError) as caught:
            load_any(path, overrides, missing_folders)
        return [problem.removeprefix(f"{path}:") for problem in caught.value.problems]

    path.write_text(replaced("val: 0.1", "val: held-out"))
    assert found() == [
        "6: finetune.data.train: photos is not a folder",
        "7: finetune.data.val: held-out is not a folder",
    ]
    assert found(f"data.train={tmp_path}", "data.val=nowhere") == [
        "--set data.val=nowhere: finetune.data.val: nowhere is not a folder"
    ]
    (tmp_path / "file").touch()
    assert found(f"data.val={tmp_path}", f"data.train={tmp_path}/file") == [
        f"--set data.train={tmp_path}/file: finetune.data.train: {tmp_path / 'file'} is not a folder; "
        "source: archive reads the images in an archive"
    ]
    archive = ("data.source=archive", f"data.val={tmp_path}/file", "data.train=gone.zip")
    assert found(*archive) == [
        "--set data.train=gone.zip: finetune.data.train: gone.zip is not an archive: there is no such file"
    ]
    load_any(path, (f"data.train={tmp_path}", f"data.val={tmp_path}"), missing_folders)
    load_any(path)  # where the folders are another machine's
