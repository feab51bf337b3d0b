"""Images that belong together, such as those of one patient: finding their groups, and a split that parts none."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow
from ftae.engine.data.files.dicom import is_dicom, tag_text
from ftae.engine.data.files.listing import MOST_NAMED, ImageFiles, legible
from ftae.engine.data.files.threads import in_order
from ftae.engine.data.source_base import ImageSet, Indices, Labels, num_held_out, shuffled
from ftae.engine.data.stores.folder import cache_folder, digest_of_all, make_once
from ftae.errors import FtaeError
from ftae.wording import count


def group_digest(name: str) -> str:
    """What is kept of the name of a group, which may identify a person: groups are split in the order of digests."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def groups_by_path(files: ImageFiles, pattern: str) -> Mapping[str, str]:
    """The digest of the group of each image, which ``pattern`` finds in its path.

    Raises:
        FtaeError: it finds nothing in some of them.
    """
    found = {name: re.search(pattern, name) for name in files.names}
    if without := [name for name, match in found.items() if match is None or match[1] is None]:
        raise FtaeError(
            f"data.groups.path ({pattern}) finds no group in {some(without, len(files.names))} of {files.root}"
        )
    return {name: group_digest(match[1]) for name, match in found.items() if match is not None}


def groups_by_tag(files: ImageFiles, keyword: str) -> Mapping[str, str]:
    """The digest of the group of each image, which a tag of DICOM names. Files are read again only where one changed.

    Raises:
        FtaeError: a file is not of DICOM, lacks the tag or cannot be read.
    """
    folder = cache_folder() / "groups" / digest_of_all([keyword, *files.stamp()])

    def group_of(name: str) -> str:
        data = files.read(name)
        try:
            value = tag_text(data, keyword) if is_dicom(data) else ""
        except UnreadableImage:  # is skipped when images are decoded
            value = name
        return value and group_digest(value)

    def write(partial: Path) -> None:
        with quiet_pillow():
            found = dict(zip(files.names, in_order(group_of, files.names), strict=True))
        if without := [name for name, group in found.items() if not group]:
            raise FtaeError(f"data.groups.tag: {keyword} is missing in {some(without, len(found))} of {files.root}")
        (partial / "groups.json").write_text(json.dumps(found))

    make_once(folder, 64 * len(files.names), write)
    groups: dict[str, str] = json.loads((folder / "groups.json").read_text())
    return groups


def in_stored_order(files: ImageFiles) -> tuple[tuple[str, ...], Labels | None]:
    """The names in the order in which images are stored; and int64 (N, 2), the group and the place of each image.

    Without groups the order is that of hashes of names. Otherwise groups follow each other, and the images of a file
    within them, so that it is opened once; the place is that in the order of hashes, which the sets have.
    """
    hashed = shuffled(files.names)
    if files.groups is None:
        return hashed, None
    groups = files.groups
    names = tuple(sorted(files.names, key=lambda name: (groups[name], name)))
    places = {name: place for place, name in enumerate(hashed)}
    numbers = _numbers(groups)
    return names, np.array([(numbers[groups[name]], places[name]) for name in names], dtype=np.int64)


def split_names(files: ImageFiles, anomalies: Iterable[str], val: float | int) -> tuple[tuple[str, ...], ...]:
    """The names of the training images, and of those that are held out, without images of the classes ``anomalies``.

    Raises:
        FtaeError: as ``split_groups``.
    """
    excluded = set(anomalies)
    names = shuffled([name for name in files.names if files.class_of(name) not in excluded])
    if files.groups is None:
        first = len(names) - num_held_out(len(names), val)
        return names[:first], names[first:]
    numbers = _numbers(files.groups)
    own = np.array([numbers[files.groups[name]] for name in names], dtype=np.int64)
    others = [numbers[files.groups[name]] for name in files.names if files.class_of(name) in excluded]
    train, held_out = split_groups(own, others, val)
    return tuple(names[i] for i in train), tuple(names[i] for i in held_out)


def split_groups(groups: Labels, anomalous: Iterable[int], val: float | int) -> tuple[Indices, Indices]:
    """Which images are trained on, and which are held out: whole groups, as near to the wanted number as they allow.

    Args:
        groups: int64 (N,), the group of each image, numbered in the order of digests; the last ones are held out.
        anomalous: groups with images that are never trained on. They are held out before any other.

    Raises:
        FtaeError: no group would be left to train on.
    """
    numbers, sizes = np.unique(groups, return_counts=True)
    is_anomalous = np.isin(numbers, list(anomalous))
    order = np.concatenate([np.flatnonzero(is_anomalous), np.flatnonzero(~is_anomalous)[::-1]])
    least = max(int(is_anomalous.sum()), 1)
    if least >= len(numbers):
        why = "have images of data.anomaly_classes, and are held out" if is_anomalous.any() else "cannot be parted"
        raise FtaeError(
            f"data.groups: {count(len(groups), 'image')} of {count(len(numbers), 'group')}, which {why}: none would be "
            "left to train on. Name other groups, or a val folder"
        )
    held_out = np.cumsum(sizes[order])[least - 1 : -1]
    chosen = least + int(np.abs(held_out - num_held_out(len(groups), val)).argmin())
    is_held_out = np.isin(groups, numbers[order[:chosen]])
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def check_groups_apart(train: ImageFiles, val: ImageFiles) -> None:
    """No group may have images in both folders. The message names files, since the name of a group may be a patient's.

    Raises:
        FtaeError: one has.
    """
    assert train.groups is not None
    assert val.groups is not None
    first = {group: name for name, group in reversed(list(train.groups.items()))}
    if shared := {group: name for name, group in reversed(list(val.groups.items())) if group in first}:
        named = sorted(f"{legible(name)} and {legible(first[group])}" for group, name in shared.items())
        more = "; ..." if len(named) > MOST_NAMED else ""
        raise FtaeError(
            f"data.groups: {count(len(shared), 'group')} of {val.root} also {'has' if len(shared) == 1 else 'have'} "
            f"images in {train.root}: {'; '.join(named[:MOST_NAMED])}{more}. Move the files of a group to one side"
        )


def group_notes(train: Sequence[Any] | Labels | None, val: Sequence[Any] | Labels | None) -> tuple[str, ...]:
    """How the groups were split, given the group of each image, if it has any; no group is named."""
    if train is None or val is None:
        return ()
    ours, theirs = (f"{count(len(of), 'image')} of {count(len(set(of)), 'group')}" for of in (train, val))
    return (f"data.groups: {ours} are trained on, {theirs} held out",)


def twin_notes(
    train: ImageSet, held_out: Iterable[ImageSet], names: Callable[[], Mapping[int, Sequence[str]]]
) -> tuple[str, ...]:
    """How many held-out images are also trained on, to the bit.

    ``names``: the names of images by the digest of their pixels; empty where they are not known.
    """
    if train.digests is None:
        return ()
    known = [images.digests for images in held_out if images.digests is not None]
    twins = [digest for digests in known for digest in digests[np.isin(digests, train.digests)].tolist()]
    if not twins:
        return ()
    known_names = names()
    named = [" and ".join(map(legible, known_names[twin])) for twin in dict.fromkeys(twins) if twin in known_names]
    shown = f" ({'; '.join(named[:MOST_NAMED])}{'; ...' if len(named) > MOST_NAMED else ''})" if named else ""
    verb = "is" if len(twins) == 1 else "are"
    return (
        f"{count(len(twins), 'validation image')} {verb} also in training, with the same pixels{shown}: what they "
        "score says nothing of new images. data.groups keeps images that belong together on one side",
    )


def some(names: list[str], total: int) -> str:
    """The number of files of ``total``, and the first names."""
    more = ", ..." if len(names) > MOST_NAMED else ""
    return f"{len(names)} of {count(total, 'file')} ({', '.join(map(legible, names[:MOST_NAMED]))}{more})"


def _numbers(groups: Mapping[str, str]) -> dict[str, int]:
    return {group: number for number, group in enumerate(sorted(set(groups.values())))}
