"""Where pretrained models lie on disk."""

import hashlib
from pathlib import Path

CONFIG, WEIGHTS = "ftae_model.json", "model.safetensors"


def pretrained_folder(pretrained: str) -> Path | None:
    """The local folder that holds the model; None if ``pretrained`` is not a local folder.

    A folder written by ``ftae train`` or ``ftae export`` holds it in its ``model/``.
    """
    folder = Path(pretrained).expanduser()
    if (folder / "model").is_dir():
        folder = folder / "model"
    return folder if folder.is_dir() else None


def weights_digest(pretrained: str | None) -> str | None:
    """32 hexadecimal digits of the files of a local model; None for a hub id, or without a model."""
    if pretrained is None or not Path(pretrained).expanduser().exists():
        return None
    path = pretrained_folder(pretrained) or Path(pretrained).expanduser()
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, hashlib.blake2b).digest())
    return digest.hexdigest()
