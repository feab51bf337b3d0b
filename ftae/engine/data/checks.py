"""What makes images unfit for a run, as far as the list of their files tells.

``check_listed`` says it before any image is decoded, ``load_dataset`` where it has them.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from ftae.engine.data.listing import ImageFiles, legible, list_images
from ftae.engine.data.sources import num_held_out, shuffled
from ftae.engine.data.survey import LOOKED_AT, Survey, check_levels, glanced
from ftae.errors import FtaeError
from ftae.specs.finetune.data import AnyData, DataSpec, ImageFolder, Photos, normal_classes
from ftae.specs.finetune.metrics import METRICS
from ftae.specs.finetune.run import FinetuneSpec


def check_anomalies(spec: DataSpec, class_names: Sequence[str]) -> None:
    """``data.anomaly_classes`` must name some of the classes that there are, and leave one."""
    if spec.anomaly_classes and not class_names:
        raise FtaeError("data.anomaly_classes needs classes: put the images of each into a sub-folder of data.train")
    try:
        normal_classes(class_names, spec.anomaly_classes)
    except ValueError as error:
        raise FtaeError(str(error)) from error


def check_has_anomalies(spec: DataSpec, count: int) -> None:
    """``count``: validation images that are anomalies."""
    if spec.anomaly_classes and not count:
        raise FtaeError(f"data.anomaly_classes: no validation image is of {', '.join(spec.anomaly_classes)}")


def check_enough(count: int) -> None:
    """Of images of which a share is held out."""
    if count < 2:
        raise FtaeError(
            f"data.val as a share needs at least 2 readable images, found {count}; add images or name a val folder"
        )


def check_some(leaf: str, folder: str, count: int) -> None:
    """``count``: images in ``folder``, which ``leaf`` names, that are no anomalies."""
    if not count:
        raise FtaeError(f"{leaf} ({folder}) has no readable image that is not of data.anomaly_classes")


def check_labelled(spec: DataSpec, has_labels: bool) -> None:
    """A share of labels can be kept only where there are labels."""
    if spec.labelled_fraction < 1.0 and not has_labels:
        raise FtaeError(
            f"data.labelled_fraction ({spec.labelled_fraction:g}) needs labels: put the images of each class into a "
            "sub-folder of data.train"
        )


def too_few(metric: str, count: int, data: str = "data") -> str | None:
    """What a metric needs beside ``count`` validation images; None if that is enough."""
    least = METRICS[metric].least_images
    return f"at least {least} validation images, {data} has {count}" if count < least else None


def check_val_classes(spec: ImageFolder, train: Iterable[str], val: Iterable[str]) -> None:
    """The classes of the two folders, without anomalies."""
    known = tuple(train)
    unknown = [legible(name) for name in val if name not in known]
    if unknown:
        has = f"has only {', '.join(map(legible, known))}" if known else "has no class folders"
        raise FtaeError(f"data.val ({spec.val}) has the class folders {', '.join(unknown)}, but data.train {has}")


def check_folders(spec: AnyData) -> None:
    """The validation folders must not be training folders, neither here nor of the other domain."""
    replay = spec.replay
    if isinstance(spec, ImageFolder) and isinstance(spec.val, str):
        _check_apart(("data.train", spec.train), ("data.val", spec.val))
    if isinstance(spec, ImageFolder) and isinstance(replay, ImageFolder):
        if isinstance(spec.val, str):
            _check_apart(("data.replay.train", replay.train), ("data.val", spec.val))
        if isinstance(replay.val, str):
            _check_apart(("data.train", spec.train), ("data.replay.val", replay.val))


def _check_apart(train: tuple[str, str], val: tuple[str, str]) -> None:
    """Of two folders, each with the name of its leaf."""
    train_path, val_path = (Path(path).expanduser().resolve() for _, path in (train, val))
    if train_path.is_relative_to(val_path) or val_path.is_relative_to(train_path):
        raise FtaeError(
            f"{train[0]} ({train[1]}) and {val[0]} ({val[1]}) must be separate folders, neither inside the other: "
            "validation images must not be trained on. A val between 0 and 1 holds out a share of train"
        )


# -------------------------------------------------------------------------------------- before decoding


def check_listed(run: FinetuneSpec) -> list[str]:
    """Refuse what ``load_dataset`` and the metrics would refuse; returns what there is to know of the files.

    Of a large folder only some files are opened.

    Raises:
        FtaeError: the images are missing or unfit.
    """
    notes: list[str] = []
    data: AnyData | None = run.data
    while data is not None:
        check_folders(data)
        if isinstance(data, ImageFolder):
            notes += _check_image_folder(data, run if data is run.data else None)
        elif isinstance(data, Photos):
            from ftae.engine.data.builtin_sources import source_of

            source_of(data)
        data = data.replay
    return notes


def _check_image_folder(spec: ImageFolder, run: FinetuneSpec | None) -> list[str]:
    """``run``: the one whose metrics the labels must serve."""
    train = list_images(Path(spec.train).expanduser())
    folders = {spec.train: train}
    if isinstance(spec.val, str):
        val = folders[spec.val] = list_images(Path(spec.val).expanduser())
        normal = _normal(train, spec), _normal(val, spec)
        check_anomalies(spec, sorted({*(train.class_names or ()), *(val.class_names or ())}))
        check_some("data.train", spec.train, len(normal[0]))
        check_some("data.val", spec.val, len(normal[1]))
        check_val_classes(spec, _classes(train, normal[0]), _classes(val, normal[1]))
        check_has_anomalies(spec, len(val.names) - len(normal[1]))
        judged = len(val.names)
    else:
        check_anomalies(spec, train.class_names or ())
        names = _normal(train, spec)
        check_enough(len(names))
        first = len(names) - num_held_out(len(names), spec.val)
        normal = names[:first], names[first:]
        judged = len(normal[1]) + len(train.names) - len(names)
    check_labelled(spec, train.class_names is not None)
    if run is not None:
        for metric in run.metrics:
            if reason := too_few(metric, judged):
                raise FtaeError(f"metrics: {metric} needs {reason}")
        check_classes(run, _classes(train, normal[0]), val_labelled="/" in normal[1][0])
    return [*_about_one_class(run, train), *_look_at(spec, folders)]


def _normal(files: ImageFiles, spec: DataSpec) -> tuple[str, ...]:
    """The images of no anomaly, in the order in which they are stored."""
    return shuffled([name for name in files.names if files.class_of(name) not in spec.anomaly_classes])


def _classes(files: ImageFiles, names: Sequence[str]) -> list[str]:
    return sorted({c for name in names if (c := files.class_of(name)) is not None})


def check_classes(run: FinetuneSpec, train_classes: Sequence[str], *, val_labelled: bool) -> None:
    """The classes of the training images, and whether validation images have labels, are enough for the run."""
    metrics = [name for name in run.metrics if name in ("linear_probe", "accuracy")]
    losses = ["losses.ce"] if run.losses.ce > 0.0 else []
    for leaf, is_labelled, wanting in (
        ("train", bool(train_classes), losses + metrics),
        ("val", val_labelled, metrics),
    ):
        if wanting and not is_labelled:
            raise FtaeError(f"{wanting[0]} needs labels: put the images of each class into a sub-folder of data.{leaf}")
    if "linear_probe" in metrics and len(train_classes) < 2:
        raise FtaeError("linear_probe needs training images of at least 2 classes")


def _about_one_class(run: FinetuneSpec | None, train: ImageFiles) -> list[str]:
    if run is None or run.losses.ce == 0.0 or train.class_names is None:
        return []
    classes = [name for name in train.class_names if name not in run.data.anomaly_classes]
    told = "losses.ce and accuracy tell nothing apart: all images are of the class "
    return [told + legible(classes[0])] if len(classes) == 1 else []


def _look_at(spec: ImageFolder, folders: dict[str, ImageFiles]) -> list[str]:
    """What the files themselves tell, of some of them where there are many."""
    notes, surveys = [], []
    for path, files in folders.items():
        surveys.append(glanced(files, shuffled(files.names)[:LOOKED_AT]))
        if files.unusable:
            notes.append(f"{path}: {skipped_message(files.unusable)}")
        notes += folder_notes(path, files, surveys[-1], spec)
    try:
        check_levels(surveys, spec, ", ".join(folders))
    except FtaeError as error:
        if all(len(files.names) <= LOOKED_AT for files in folders.values()):
            raise
        notes.append(f"of the first {LOOKED_AT} images looked at: {error}")
    return notes


def folder_notes(path: str, files: ImageFiles, survey: Survey, spec: DataSpec) -> tuple[str, ...]:
    """All that is to be said of one folder, but for files that cannot be read."""
    told = survey.notes(spec)
    if not survey.content and told and len(files.names) > LOOKED_AT:
        told = [f"of the first {LOOKED_AT} images looked at, {line}" for line in told]
    return tuple(f"{path}: {line}" for line in (*files.notes, *told))


def skipped_message(skipped: Sequence[str]) -> str:
    """One line that counts and names the images that were left out, each "name: reason"."""
    named = "; ".join(map(legible, skipped[:5])) + ("; ..." if len(skipped) > 5 else "")
    return f"{len(skipped)} images cannot be read and are skipped: {named}"
