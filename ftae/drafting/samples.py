"""What a search file must say of files that hold several samples, or samples of one patient."""

from typing import Any

from ftae.engine.data.files.decoding import UnreadableImage, quiet_pillow
from ftae.engine.data.files.dicom import is_dicom, tag_text
from ftae.engine.data.files.listing import ImageFiles
from ftae.engine.data.files.nifti import SUFFIXES as NIFTI
from ftae.engine.data.source_base import shuffled

SOURCES = ("image_folder", "archive")  # whose files may hold several samples
FEW, LARGE = 100, 1024  # images: fewer and larger ones are cut into tiles
TILE = 256
PATIENT = "PatientID"
MOST_ASKED = 200  # files, for their patients


def volume_settings(files: ImageFiles) -> tuple[dict[str, Any], dict[str, str]]:
    """Which slices of volumes are samples, and why."""
    if not any(name.lower().endswith(NIFTI) for name in files.names):
        return {}, {}
    why = "of the body; or sagittal, coronal. Slices of a volume stay on one side of the split"
    return {"slices": {"axis": "axial"}}, {"slices": why}


def patient_settings(files: ImageFiles) -> tuple[dict[str, Any], dict[str, str]]:
    """That images of a patient stay together, where DICOM files name several."""
    patients = _patients(files)
    if len(set(patients)) < 2 or "" in patients:
        return {}, {}
    return {"groups": {"tag": PATIENT}}, {"groups": "all images of a patient stay on one side of the split"}


def _patients(files: ImageFiles) -> list[str]:
    """The patients of some DICOM files; empty where others are among them."""
    found = []
    with quiet_pillow():
        for name in shuffled(files.names)[:MOST_ASKED]:
            data = files.read(name)
            if not is_dicom(data):
                return []
            try:
                found.append(tag_text(data, PATIENT))
            except UnreadableImage:  # is named when all images are decoded
                continue
    return found


def tile_settings(number: int, least_side: int) -> tuple[dict[str, Any], dict[str, str]]:
    """That a few large images are cut into many small ones."""
    if number == 1 or number >= FEW or least_side < LARGE:  # tiles of one image cannot be divided
        return {}, {}
    why = (
        f"{number} images of at least {least_side} pixels: squares of them are samples, in the resolution of the files"
    )
    return {"tiles": {"size": TILE}}, {"tiles": f"{why}. Those of an image stay on one side of the split"}
