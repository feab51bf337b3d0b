"""Draft a search file for a model and data."""

from pathlib import Path
from typing import TYPE_CHECKING

from ftae.api.unchanged_process import unchanged_process

if TYPE_CHECKING:
    from ftae.drafting.draft import Draft


def draft_search(
    model: Path | str,
    data: Path | str,
    targets: Path | str | None = None,
    *,
    task: str | None = None,
    file: Path | str | None = None,
    scaling: str | float | None = None,
) -> "Draft":
    """Look at a model and at data, and draft an annotated search file that fits both.

    Args:
        model: a folder (of diffusers, or written by ftae), a file of weights, a hub id, of which nothing but the name
            is looked at, or the name of a family, to train from scratch.
        data: a folder of images, an archive, the place of shards, a file of arrays, or the name of a built-in source,
            such as ``digits``.
        targets: a second folder: ``data`` is what the model gets, ``targets`` what it learns to give, by the same
            names, or without partners.
        task: ``reconstruct``, ``denoise``, ``anomaly``, ``translate`` or ``sample``; by default what fits.
        file: where the text will be written, for the commands in it; by default ``NAME.yaml``.
        scaling: how the latents of a single file are scaled, which its tensors do not say: ``sd``, ``sdxl``, ``sd3``,
            ``flux``, or a factor.

    Returns:
        The draft: its ``text`` for a file, what it says as a ``spec``, and ``notes`` of what was seen.

    Raises:
        FtaeError: model or data are missing or damaged, or they do not fit each other or the task.

    Examples:
        >>> draft = ftae.draft_search("conv_vae", "digits")
        >>> Path("search.yaml").write_text(draft.text)
    """
    from ftae.drafting.draft import draft

    names = [str(name) for name in (data, targets) if name is not None]
    with unchanged_process(allow_code=False):
        return draft(str(model), names, task, *(None if each is None else str(each) for each in (file, scaling)))
