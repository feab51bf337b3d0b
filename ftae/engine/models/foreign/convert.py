"""Converts a file of foreign weights into a folder that ``model.pretrained`` can name."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftae.engine.models.foreign.layouts import ForeignModel, Layout, read_layout
from ftae.engine.models.foreign.network import Network
from ftae.engine.models.foreign.reading import read_foreign
from ftae.engine.models.pretrained.model_folder import CONFIG, DISCRIMINATOR, DISCRIMINATOR_CONFIG, write_origin
from ftae.engine.models.pretrained.weights import save_state
from ftae.errors import FtaeError, one_message
from ftae.specs.reading.format_versions import FORMAT


@dataclass(frozen=True)
class Converted:
    """A file that was converted.

    Attributes:
        folder: the folder for ``model.pretrained``.
        family: its family.
        resolution: the side of the images that the file's network was made for, in pixels.
        layout: the layout of the file.
        networks: the networks in the folder: ``model``, and ``discriminator`` where the file has one.
    """

    folder: Path
    family: str
    resolution: int
    layout: str
    networks: tuple[str, ...]


def convert(file: Path, out: Path, *, licence: str | None = None) -> Converted:
    """Write the networks of ``file`` to the new folder ``out``, which appears whole or not at all.

    ``out`` gets ``model.safetensors``, ``ftae_model.json``, and ``weights.json`` with the origin of the weights; where
    the file has a discriminator, also ``discriminator.safetensors`` and ``discriminator.json``. ``licence``: the terms
    that the weights are under.

    Raises:
        FtaeError: ``file`` cannot be read, could run code, is of no known layout, or its networks differ from ftae's;
            ``licence`` is missing; ``out`` exists.
    """
    if out.exists():
        raise FtaeError(f"{out} exists; remove it or choose another folder")
    content = read_foreign(file)
    try:
        with one_message("its content is damaged"):
            layout, found = read_layout(content)
    except FtaeError as error:
        raise FtaeError(f"FILE: {file}: {error}") from error
    if not licence or not licence.strip():
        raise FtaeError(f"{file} is one of {layout.name}, which need --licence TEXT: {layout.licence}")
    parts = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(parts, ignore_errors=True)
    try:
        networks = _write(found, parts)
        write_origin(_origin(file, layout, licence.strip()), parts)
        parts.rename(out)
    finally:
        shutil.rmtree(parts, ignore_errors=True)
    return Converted(out, found.family, found.model.facts["resolution"], layout.name, networks)


def _write(found: ForeignModel, folder: Path) -> tuple[str, ...]:
    """The networks of a file; returns their names."""
    save_state(found.model.net, folder)
    _dump({"format": FORMAT, "family": found.family} | _config(found.model), folder / CONFIG)
    if found.discriminator is None:
        return ("model",)
    save_state(found.discriminator.net, folder, DISCRIMINATOR)
    _dump({"format": FORMAT, "family": found.family} | _config(found.discriminator), folder / DISCRIMINATOR_CONFIG)
    return "model", "discriminator"


def _config(network: Network) -> dict[str, Any]:
    return {"options": network.options, **network.facts}


def _origin(file: Path, layout: Layout, licence: str) -> dict[str, str]:
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return {"file": file.name, "sha256": digest, "layout": layout.name, "licence": licence}


def _dump(content: dict[str, Any], file: Path) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
