"""Pretrained models on disk: their folders, and the files that loading reads."""

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ftae.errors import FtaeError
from ftae.specs.finetune.model_spec import ModelSpec
from ftae.specs.finetune.models import DiffusersModel

CONFIG, WEIGHTS = "ftae_model.json", "model.safetensors"
DISCRIMINATOR, DISCRIMINATOR_CONFIG = "discriminator.safetensors", "discriminator.json"  # beside the model
ORIGIN = "weights.json"  # where foreign weights come from, and their licence
DIFFUSERS_CONFIG, PIPELINE = "config.json", "model_index.json"

# Families of diffusers, with the names of their classes.
DIFFUSERS = {
    "autoencoder_kl": "AutoencoderKL",
    "autoencoder_kl_flux2": "AutoencoderKLFlux2",
    "asymmetric_autoencoder_kl": "AsymmetricAutoencoderKL",
    "autoencoder_tiny": "AutoencoderTiny",
    "autoencoder_dc": "AutoencoderDC",
    "vq_model": "VQModel",
}

WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".ckpt", ".pt", ".pth")
_STEM, _FORMATS = "diffusion_pytorch_model", ("safetensors", "bin")
_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubId:
    """A model on the hub: ``owner/name``, or ``owner/name@revision`` (a branch, a tag or a commit)."""

    repository: str
    revision: str | None

    @property
    def commit(self) -> str | None:
        """The revision if it is a commit, which never changes."""
        return self.revision if self.revision is not None and _COMMIT.fullmatch(self.revision) else None


def hub_id(pretrained: str) -> HubId | None:
    """The model on the hub that ``pretrained`` names; None if it is a path on this disk, or no hub id."""
    match = _HUB_ID.fullmatch(pretrained)
    is_file = Path(pretrained).suffix in WEIGHTS_SUFFIXES
    return HubId(*match.groups()) if match and not is_file and not Path(pretrained).exists() else None


def hub_commit(pretrained: str | None) -> str | None:
    """The commit that a model on the hub is pinned to; None for any other model."""
    named = None if pretrained is None else hub_id(pretrained)
    return None if named is None else named.commit


def pretrained_folder(pretrained: str) -> Path | None:
    """The local folder of the model; None if ``pretrained`` is no local folder.

    In a folder that ``ftae train`` or ``ftae export`` wrote, it is the sub-folder ``model``.
    """
    folder = Path(pretrained).expanduser()
    if (folder / "model").is_dir():
        folder = folder / "model"
    return folder if folder.is_dir() else None


def weights_origin(pretrained: str | None) -> dict[str, Any] | None:
    """Where the foreign weights of a model come from, with their licence, as ``ftae convert`` wrote it into its folder.

    None for any other model. Raises as ``read_json``.
    """
    folder = None if pretrained is None else pretrained_folder(pretrained)
    return None if folder is None or not (folder / ORIGIN).is_file() else read_json(folder / ORIGIN)


def write_origin(origin: dict[str, Any], folder: Path) -> None:
    """Write what ``weights_origin`` reads."""
    (folder / ORIGIN).write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class DiffusersWeights:
    """The files of one set of weights. ``variant`` in diffusers: ``fp16`` or ``ema``, say; None for the plain set."""

    variant: str | None
    format: str
    names: tuple[str, ...]

    @property
    def absent_shards(self) -> list[int]:
        """The numbers of missing parts."""
        shards = [(int(n), int(count)) for name in self.names for n, count in _SHARD.findall(name)]
        return sorted({*range(1, max((count for _, count in shards), default=0) + 1)} - {n for n, _ in shards})


def diffusers_weights(names: Iterable[str]) -> list[DiffusersWeights]:
    """The sets of weights in a folder, the one to load first: plain before variants, safetensors before bin."""
    found: dict[tuple[str | None, str], list[str]] = {}
    for name in sorted(names):
        # diffusion_pytorch_model[.VARIANT][-00001-of-00002].safetensors, ...safetensors.index[.VARIANT].json
        stem, *parts = _SHARD.sub("", name).split(".")
        variant = [part for part in parts if part not in (*_FORMATS, "index", "json")]
        kind = next((kind for kind in _FORMATS if kind in parts), None)
        if stem == _STEM and kind is not None and len(variant) <= 1:
            found.setdefault((variant[0] if variant else None, kind), []).append(name)
    sets = [DiffusersWeights(variant, kind, tuple(files)) for (variant, kind), files in found.items()]
    return sorted(sets, key=lambda each: (each.variant is not None, each.variant or "", _FORMATS.index(each.format)))


def saved_family(pretrained: str) -> str | None:
    """The family of the model in a folder that ftae wrote; None for a user's own module, whose code nobody named here.

    Raises:
        FtaeError: the description of the model is damaged.
    """
    folder = pretrained_folder(pretrained)
    if folder is None:
        return None
    if (folder / DIFFUSERS_CONFIG).is_file():
        name = diffusers_class(folder / DIFFUSERS_CONFIG)
        return next((family for family, known in DIFFUSERS.items() if known == name), None)
    family = read_json(folder / CONFIG, pretrained).get("family") if (folder / CONFIG).is_file() else None
    return family if isinstance(family, str) and ":" not in family else None


def files_read(model: ModelSpec) -> list[Path]:
    """The files on this disk that loading ``model`` reads; none for a model on the hub, or one from scratch."""
    if model.pretrained is None or not (path := Path(model.pretrained).expanduser()).exists():
        return []
    folder = pretrained_folder(model.pretrained)
    if not isinstance(model, DiffusersModel):
        names = [path] if folder is None else [folder / CONFIG, folder / WEIGHTS]
    elif folder is None:
        names = [path.with_name(DIFFUSERS_CONFIG), path]
    else:
        folder = folder / (model.subfolder or "")
        weights = diffusers_weights(file.name for file in folder.glob(f"{_STEM}*"))
        names = [folder / name for name in (DIFFUSERS_CONFIG, *(weights[0].names if weights else ()))]
    return sorted(file for file in names if file.is_file())


def model_digest(model: ModelSpec) -> str | None:
    """An identity of the pretrained weights: a hash of the files in 32 hexadecimal digits, or the commit on the hub.

    None for a model from scratch, and for one on the hub that is not pinned to a commit.
    """
    if files := files_read(model):
        return _digest(files)
    return hub_commit(model.pretrained)


def weights_files(weights: str) -> list[Path]:
    """The files behind the weights of an auxiliary network: the file itself, or those in the folder of a model."""
    folder, path = pretrained_folder(weights), Path(weights).expanduser()
    found = [path] if folder is None else [folder / CONFIG, folder / DIFFUSERS_CONFIG, *folder.glob("*.safetensors")]
    return sorted(file for file in found if file.is_file())


def weights_digest(weights: str | None) -> str | None:
    """The hash of the weights of an auxiliary network in 32 hexadecimal digits; None where there are none."""
    files = [] if weights is None else weights_files(weights)
    return _digest(files) if files else None


def _digest(files: Iterable[Path]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, hashlib.blake2b).digest())
    return digest.hexdigest()


def read_json(file: Path, setting: str = "model.pretrained") -> dict[str, Any]:
    """The JSON object in ``file``. ``setting``: the setting that names the file, for messages.

    Raises:
        FtaeError: the file cannot be read, is damaged, or holds something else.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise FtaeError(f"{setting}: {file} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise FtaeError(f"{setting}: {file} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise FtaeError(f"{setting}: {file} is damaged: it must hold a mapping, got {type(content).__name__}")
    return content


def suggested(path: Path) -> str:
    """``", did you mean 'models/vae'?"`` for the path that is closest to one that does not exist; empty if none is."""
    found = Path()
    for part in path.parts:
        child = found / part
        if not child.exists():
            with suppress(OSError):  # a folder that may not be listed suggests nothing
                close = get_close_matches(part, [sibling.name for sibling in found.iterdir()], n=1)
                child = found / close[0] if close else child
        if not child.exists():
            return ""
        found = child
    return f", did you mean {str(found)!r}?"


def looks_local(pretrained: str) -> bool:
    """Whether a hub id is more likely a mistyped path: its first part is a folder here, or it is close to a path."""
    path = Path(pretrained)
    return path.parent.is_dir() or bool(suggested(path))


def diffusers_class(config: Path) -> str | None:
    """The class that a ``config.json`` of diffusers names; None if it names none. Raises as ``read_json``."""
    name = read_json(config).get("_class_name")
    return None if name is None else str(name)
