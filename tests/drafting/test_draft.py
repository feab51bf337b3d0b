"""What ``ftae init`` writes is a valid file without doubts, for every family and every kind of data."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
import yaml
from builders import run_spec
from diffusers import AutoencoderKL, AutoencoderKLFlux2, VQModel
from PIL import Image
from pydicom import dcmread
from safetensors.torch import save_file
from tiny_diffusers import FOLDERS, save_tiny_models

from ftae.drafting.document import Entry, document
from ftae.drafting.draft import Draft, draft
from ftae.drafting.model import SPECS, look_at_model
from ftae.engine.data.dataset import check_listed
from ftae.engine.models.families import build_model
from ftae.errors import FtaeError
from ftae.specs.files import load_search
from ftae.specs.finetune.models import DiffusersModel
from ftae.specs.finetune.sources.arrays import Arrays
from ftae.specs.finetune.sources.folders import ImageFolder
from ftae.specs.search.lint import missing_folders, warnings

DICOM_SAMPLES = Path(pydicom.__file__).parent / "data" / "test_files"
SIDE = 34
NEW = sorted(family for family, kind in SPECS.items() if not issubclass(kind, DiffusersModel))


def pictures(
    place: Path, number: int = 20, *, classes: tuple[str, ...] = ("",), mode: str = "RGB", width: int = SIDE
) -> Path:
    rng = np.random.default_rng(0)
    kind, most, shape = (np.uint16, 4096, ()) if mode == "I;16" else (np.uint8, 256, (3,) if mode == "RGB" else ())
    for i in range(number):
        path = place / classes[i % len(classes)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, most, (SIDE, width, *shape)).astype(kind)).save(path)
    return place


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of every family of diffusers, and one of ftae; data of every kind."""
    home = tmp_path_factory.mktemp("home")
    save_tiny_models(home)
    build_model(run_spec(), None).save(home / "own")
    pictures(home / "flat")
    pictures(home / "classes", classes=("good", "scratch"))
    pictures(home / "deep", mode="I;16")
    pictures(home / "halves", width=2 * SIDE)
    pictures(home / "a")
    pictures(home / "b")
    pictures(home / "divided" / "train")
    pictures(home / "divided" / "test", 8)
    pictures(home / "domains" / "trainA")
    pictures(home / "domains" / "trainB", 15)
    shutil.make_archive(str(home / "archive"), "zip", home / "flat")
    shutil.make_archive(str(home / "shards" / "000"), "tar", home / "classes")
    np.save(home / "vectors.npy", np.random.default_rng(0).normal(size=(50, 16)))
    np.save(home / "images.npy", np.random.default_rng(0).integers(0, 256, (50, 16, 24, 3), dtype=np.uint8))
    np.savez(home / "series.npz", x=np.random.default_rng(0).normal(size=(50, 3, 32)), y=np.arange(50))
    return home


DATA: dict[str, tuple[str, ...]] = {
    "flat": ("flat",),
    "classes": ("classes",),
    "deep": ("deep",),
    "divided": ("divided",),
    "archive": ("archive.zip",),
    "shards": ("shards",),
    "vectors": ("vectors.npy",),
    "images": ("images.npy",),
    "series": ("series.npz",),
    "pairs": ("a", "b"),
    "domains": ("domains",),
    **{name: (name,) for name in ("digits", "shapes", "photos", "digit_edges", "digit_domains")},
}


def drafted(home: Path, model: str, data: str, task: str | None = None) -> Draft:
    places = [str(home / name) if (home / name).exists() else name for name in DATA[data]]
    return draft(model, places, task)


def check(found: Draft, file: Path) -> None:
    file.write_text(found.text, encoding="utf-8")
    spec = load_search(file, (), missing_folders)
    assert spec == found.spec
    assert warnings(spec) == []
    typed = ("#   ", "  model:", "    train:", "    val:", "    inputs:")  # paths are as long as they are
    assert max(len(line) for line in found.text.splitlines() if not line.startswith(typed)) <= 120


def fits(family: str, data: str) -> bool:
    """Whether a family can learn from such data."""
    kind = SPECS[family]
    if kind.both_ways or data in ("domains", "digit_domains"):
        return kind.both_ways and data in ("domains", "digit_domains")
    if kind.takes_noise:
        return data in ("flat", "classes", "deep", "divided", "archive", "shards", "digits", "shapes", "photos")
    if not kind.has_latents:
        return data in ("pairs", "digit_edges")
    if kind.needs_labels:
        return data in ("classes", "shards", "digits", "shapes", "digit_edges")
    if data in ("vectors", "series"):
        return family == "mlp_vae"
    return True


@pytest.mark.parametrize("family", NEW)
def test_every_family_is_drafted_for_every_kind_of_data(
    family: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits is judged by the specs alone, without the time to build models; some misfits show only then."""
    for data in (each for each in DATA if not fits(family, each)):
        with pytest.raises(FtaeError):
            drafted(home, family, data)
    look = partial(look_at_model, family)
    monkeypatch.setattr("ftae.drafting.draft.look_at_model", lambda *_: replace(look(), is_here=False))
    for data in (each for each in DATA if fits(family, each)):
        check(drafted(home, family, data), tmp_path / "search.yaml")


def scans(place: Path, patients: tuple[str, ...]) -> Path:
    place.mkdir()
    for i, patient in enumerate(patients):
        scan = dcmread(DICOM_SAMPLES / "CT_small.dcm")
        scan.PatientID = patient
        scan.save_as(place / f"{i}.dcm")
    return place


def test_scans_are_read_in_their_unit_and_patients_kept_together(tmp_path: Path) -> None:
    found = draft("conv_vae", [str(scans(tmp_path / "ct", ("p1", "p2", "p3", "p1", "p2", "p3")))])
    check(found, tmp_path / "search.yaml")
    data = found.spec.finetune.data
    assert isinstance(data, ImageFolder)
    assert data.intensity is not None
    assert (data.intensity.window, data.intensity.unit) == ((-1000.0, 1000.0), "HU")
    assert data.groups is not None
    assert data.groups.tag == "PatientID"
    assert "mae" in found.spec.finetune.metrics
    assert (data.resolution, data.color) == (128, "grey")
    one = draft("conv_vae", [str(scans(tmp_path / "one", ("p1",) * 4))]).spec.finetune.data
    assert isinstance(one, ImageFolder)
    assert one.groups is None


def test_slices_of_volumes_are_samples(tmp_path: Path) -> None:
    (tmp_path / "volumes").mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(-50, 900, (24, 24, 6), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "volumes" / f"{i}.nii.gz")
    found = draft("conv_vae", [str(tmp_path / "volumes")])
    check(found, tmp_path / "search.yaml")
    data = found.spec.finetune.data
    assert isinstance(data, ImageFolder)
    assert data.slices is not None
    assert data.slices.axis == "axial"
    assert data.intensity is not None
    assert data.intensity.percentile == (0.5, 99.5)
    assert data.resolution == 24


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_a_few_large_images_are_cut_into_tiles(kind: type, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    for i in range(4):
        tifffile.imwrite(tmp_path / "large" / f"{i}.tif", np.full((1100, 1200), 40 * i, dtype=kind))
    found = draft("conv_vae", [str(tmp_path / "large")])
    check(found, tmp_path / "search.yaml")
    data = found.spec.finetune.data
    assert isinstance(data, ImageFolder)
    assert data.tiles is not None
    assert data.tiles.size == data.resolution == 256


def test_two_domains_of_floats_share_a_window(tmp_path: Path) -> None:
    for side in "ab":
        (tmp_path / side).mkdir()
        for i in range(6):
            values = np.random.default_rng(i).normal(100.0, 30.0, (32, 32)).astype(np.float32)
            tifffile.imwrite(tmp_path / side / f"{i}.tif", values)
    check(draft("resnet_translator", [str(tmp_path / "a"), str(tmp_path / "b")]), tmp_path / "search.yaml")


def test_bands_that_a_pretrained_model_lacks_get_convolutions(home: Path, tmp_path: Path) -> None:
    (tmp_path / "leaves").mkdir()
    for i in range(20):
        values = np.random.default_rng(i).integers(0, 4096, (32, 32, 7), dtype=np.uint16)
        tifffile.imwrite(tmp_path / "leaves" / f"{i}.tif", values, photometric="minisblack", planarconfig="contig")
    found = draft(str(home / FOLDERS["autoencoder_kl"]), [str(tmp_path / "leaves")])
    check(found, tmp_path / "search.yaml")
    assert found.spec.finetune.data.channels == 7
    assert "the model gets new convolutions for them" in found.text.replace("\n", " ").replace("    # ", "")


@pytest.mark.parametrize("family", [*FOLDERS, "conv_vae", "own"])
def test_a_model_that_can_be_built_shows_its_stages(family: str, home: Path, tmp_path: Path) -> None:
    model = str(home / FOLDERS.get(family, family)) if family != "conv_vae" else family
    found = drafted(home, model, "digits" if family == "own" else "classes")
    check(found, tmp_path / "search.yaml")
    run = found.spec.finetune
    built = build_model(run, 2)
    if family == "conv_vae":
        assert run.freeze_depth == 0
    elif family == "own":
        assert run.data.color == "grey"  # what it takes
        assert run.data.resolution == 16
        assert "freeze_depth" in found.spec.search_space
    else:
        trained = {stage.group for stage in built.trainable_stages()}
        assert trained == {"decoder"}
        assert [str(each) for each in found.spec.objective.constraints] == ["val/latent_drift <= 0.1"]


def test_what_files_hold_becomes_settings_of_the_data(home: Path) -> None:
    deep = drafted(home, "conv_ae", "deep").spec.finetune.data
    assert isinstance(deep, ImageFolder)
    assert deep.color == "grey"
    assert deep.resolution == 32
    assert deep.intensity is not None
    assert deep.intensity.bits == 12
    divided = drafted(home, "conv_ae", "divided").spec.finetune.data
    assert divided.val == str(home / "divided" / "test")
    shards = drafted(home, "conv_ae", "shards").spec.finetune.data
    assert (shards.source, shards.resolution, shards.color) == ("shards", 32, "rgb")
    assert draft("conv_ae", [f"{home}/shards/*.tar"]).spec.finetune.data.source == "shards"
    series = drafted(home, "mlp_vae", "series").spec.finetune.data
    assert isinstance(series, Arrays)
    assert (series.member, series.layout, series.size, series.num_channels) == ("x", "cs", (1, 32), 3)
    images = drafted(home, "conv_ae", "images").spec.finetune.data
    assert isinstance(images, Arrays)
    assert (images.layout, images.size, images.normalise) == ("hwc", (16, 24), (0.0, 255.0))


def test_a_task_changes_what_is_measured(home: Path, tmp_path: Path) -> None:
    clean = drafted(home, "conv_ae", "flat", "denoise")
    check(clean, tmp_path / "search.yaml")
    assert clean.spec.finetune.data.degrade is not None
    assert "input_psnr" in clean.spec.finetune.metrics
    odd = drafted(home, "conv_vae", "classes", "anomaly")
    check(odd, tmp_path / "search.yaml")
    assert odd.spec.finetune.data.anomaly_classes == ("scratch",)
    assert odd.spec.objective.metric == "val/auroc"
    pictures(tmp_path / "mvtec" / "train", classes=("good",))
    pictures(tmp_path / "mvtec" / "test", 12, classes=("good", "bent", "scratch"))
    pictures(tmp_path / "mvtec" / "ground_truth", 4)
    found = draft("conv_ae", [str(tmp_path / "mvtec")], "anomaly")
    assert found.spec.finetune.data.anomaly_classes == ("bent", "scratch")
    check_listed(found.spec.finetune)
    halves = draft("unet_translator", [str(home / "halves")], "translate")
    assert halves.spec.finetune.data.source == "pairs"
    assert halves.spec.finetune.data.resolution == 32


@pytest.mark.parametrize(
    ("model", "data", "task", "message"),
    [
        ("conv_va", "digits", None, "there is no model 'conv_va'.*did you mean 'conv_vae'"),
        ("autoencoder_kl", "digits", None, "is tuned from pretrained weights"),
        ("conv_vae", "digit", None, "there is no data 'digit'"),
        ("conv_vae", "photos", "anomaly", "anomaly needs classes"),
        ("conv_vae", "digits", "sample", "is no generator"),
        ("dcgan", "digits", "reconstruct", "its task is sample"),
        ("conv_vae", "digit_domains", None, "cyclegan alone learns from"),
    ],
)
def test_what_does_not_fit_is_said(model: str, data: str, task: str | None, message: str) -> None:
    with pytest.raises(FtaeError, match=message):
        draft(model, [data], task)


def test_of_a_model_on_the_hub_the_name_is_known(home: Path, tmp_path: Path) -> None:
    found = drafted(home, "stabilityai/sd-vae-ft-mse", "flat")
    check(found, tmp_path / "search.yaml")
    assert found.spec.finetune.model.family == "autoencoder_kl"
    assert found.spec.finetune.freeze == ("encoder", "bottleneck")
    assert "nothing was fetched" in found.notes[0]
    assert drafted(home, "madebyollin/taesd", "flat").spec.finetune.model.family == "autoencoder_tiny"


@pytest.mark.parametrize(
    ("network", "scaling", "written"),
    [
        (AutoencoderKL, "sdxl", "sdxl"),
        (AutoencoderKL, "0.9", {"factor": 0.9}),
        (VQModel, None, None),
        (AutoencoderKLFlux2, None, None),
    ],
)
def test_a_single_file_needs_nothing_beside_it(
    network: Any, scaling: str | None, written: Any, home: Path, tmp_path: Path
) -> None:
    """Their tensors say what they are, but not how a diffusion model scales the latents: that is asked for."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    net = network(block_out_channels=(32, 32), layers_per_block=1, latent_channels=4, **blocks)
    save_file(net.state_dict(), tmp_path / "vae.safetensors")
    model, data = str(tmp_path / "vae.safetensors"), [str(home / "flat")]
    found = draft(model, data, scaling=scaling)
    check(found, tmp_path / "search.yaml")
    assert yaml.safe_load(found.text)["finetune"]["model"].get("scaling") == written
    assert (f"--scaling {scaling}" in found.text) == (scaling is not None)
    for wrong in (None, "sd4") if scaling else ("sd",):
        rule = "does not say how its latents are scaled: say by --scaling" if scaling else "scaling has no effect on"
        with pytest.raises(FtaeError, match=rule):
            draft(model, data, scaling=wrong)
    with pytest.raises(FtaeError, match="scaling has no effect on"):
        draft(str(home / "kl"), data, scaling="sd")


def test_no_name_ends_a_comment() -> None:
    entries = [Entry("classes", ["a\nb: 1"], "of a\nb: 2 and \x85c: 3")]
    text = document(["of a\nb: 4"], entries)
    assert yaml.safe_load(text) == {"classes": ["a\nb: 1"]}
