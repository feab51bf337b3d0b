"""What would be lost or go wrong in silence is told or refused: bits, bands, frames, sizes."""

import io
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_files
import numpy as np
import pytest
from builders import run_spec
from image_files import encoded, folder_spec
from PIL import Image, TiffImagePlugin

from ftae.engine.data.dataset import Dataset, check_listed, load_dataset
from ftae.engine.data.files.decoding import decode_image
from ftae.engine.data.image_folder import folder_part
from ftae.engine.data.stored_parts import part_keys
from ftae.engine.data.survey import NUM_GLANCED, survey_image
from ftae.errors import FtaeError
from ftae.inference.pictures import named_folder, validation_names
from ftae.specs.finetune.run import FinetuneSpec

pytestmark = pytest.mark.usefixtures("cache")


def load(folder: Path, **fields: Any) -> Dataset:
    return image_files.load(folder_spec(folder, **{"val": 0.5, **fields}))


def told(data: Dataset) -> tuple[str, ...]:
    """The notes of a data set, but for that on equal images, which these tests make."""
    return tuple(note for note in data.notes if "also in training" not in note)


def run_on(folder: Path, **fields: Any) -> FinetuneSpec:
    return run_spec(data=folder_spec(folder, **{"val": 0.5, **fields}).model_dump())


def grey16(largest: int, side: int = 32) -> Image.Image:
    """From 0 to ``largest``, from left to right."""
    return Image.fromarray(np.tile(np.linspace(0, largest, side).round().astype(np.uint16), (side, 1)))


def png16(color_type: int, values: np.ndarray, transparent: bytes | None = None) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write: (side, side, channels)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    clear = b"" if transparent is None else chunk(b"tRNS", transparent)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + clear + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def ppm16(values: np.ndarray, maxval: int) -> bytes:
    magic = b"P5" if values.ndim == 2 else b"P6"
    return b"%s %d %d %d\n" % (magic, values.shape[1], values.shape[0], maxval) + values.astype(">u2").tobytes()


def tiff(bands: int, bits: int = 8, extra: int = 0) -> bytes:
    """A TIFF of any number of bands, uncompressed, 16 x 16, written by hand."""
    kind = {8: "B", 16: "H"}[bits]
    pixels = np.full((16, 16, bands), 100, dtype=kind).tobytes()
    colours = 3 if bands >= 3 else 1
    entries: list[tuple[int, int, tuple[int, ...]]] = [
        (256, 3, (16,)),
        (257, 3, (16,)),
        (258, 3, (bits,) * bands),
        (259, 3, (1,)),
        (262, 3, (2 if bands >= 3 else 1,)),
        (273, 4, (8,)),
        (277, 3, (bands,)),
        (278, 3, (16,)),
        (279, 4, (len(pixels),)),
    ]
    if bands > colours:
        entries.append((338, 3, (extra,) * (bands - colours)))
    after = 8 + len(pixels) + 2 + 12 * len(entries) + 4
    table, beyond = struct.pack("<H", len(entries)), b""
    for tag, form, values in entries:
        content = struct.pack(f"<{len(values)}{'H' if form == 3 else 'I'}", *values)
        if len(content) > 4:
            content, beyond = struct.pack("<I", after + len(beyond)), beyond + content
        table += struct.pack("<HHI", tag, form, len(values)) + content.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + table + b"\0\0\0\0" + beyond


def animation(kind: str, frames: int) -> bytes:
    images = [Image.new("RGB", (32, 32), (i * 60, 200 - i * 60, 0)) for i in range(frames)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
DEEP = np.full((32, 32, 3), 40000, np.uint16)


@pytest.mark.parametrize(
    ("data", "note"),
    [
        (png16(2, DEEP), "1 image has 16 bits a channel; the upper 8 are kept, data.intensity: {bits: 16} keeps all"),
        (png16(6, np.full((32, 32, 4), 65535, np.uint16)), "16 bits a channel"),
        (png16(4, np.full((32, 32, 2), 65535, np.uint16)), "16 bits a channel"),
        (ppm16(DEEP, 65535), "16 bits a channel"),
        (tiff(3, bits=16), "16 bits a channel"),
        (
            encoded(grey16(65535), "png"),
            "1 grey image has 16 bits; the upper 8 are kept",
        ),
        (encoded(grey16(65535), "tiff"), "1 grey image has 16 bits"),
        (encoded(grey16(65535), "jpeg2000"), "1 grey image has 16 bits"),
        (ppm16(np.full((32, 32), 65535), 65535), "1 grey image has 16 bits"),
        (tiff(4), "only the first bands of up to 4 are used: 1 file (x.png)"),
        (tiff(6), "only the first bands of up to 6 are used"),
        (tiff(5, extra=0), "only the first bands of up to 5 are used"),
        (animation("gif", 3), "only the first of up to 3 frames or pages is used: 1 file (x.png)"),
        (animation("png", 3), "up to 3 frames"),
        (animation("webp", 3), "up to 3 frames"),
        (animation("tiff", 5), "up to 5 frames"),
    ],
)
def test_what_is_not_used_is_said(data: bytes, note: str, tmp_path: Path) -> None:
    """By the listing, by the data set, and of a folder to judge by."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.png").write_bytes(data)
    (tmp_path / "d" / "plain.png").write_bytes(encoded(NOISE, "png"))
    for notes in (
        check_listed(run_on(tmp_path / "d")),
        load(tmp_path / "d").notes,
        load(tmp_path / "d").notes,  # from the cache, too
        named_folder(str(tmp_path / "d"), folder_spec(tmp_path / "d")).notes,
    ):
        assert [line for line in notes if note in line] != [], notes
        assert len(notes) == 1


@pytest.mark.parametrize(
    "data",
    [
        encoded(NOISE, "png"),
        encoded(NOISE, "jpeg"),
        encoded(NOISE.convert("CMYK"), "jpeg"),
        encoded(NOISE.convert("CMYK"), "tiff"),
        encoded(NOISE.convert("RGBA"), "tiff"),
        encoded(NOISE.convert("LA"), "png"),
        encoded(NOISE.convert("1"), "png"),
        encoded(NOISE.convert("P"), "gif"),
        encoded(NOISE.convert("YCbCr"), "tiff", compression="jpeg"),
        encoded(NOISE, "jpeg2000"),
        encoded(NOISE, "webp"),
        encoded(NOISE, "mpo", save_all=True, append_images=[NOISE]),  # a photo and its preview
        # A BMP of 16 bits for a whole pixel.
        struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 2102, 0, 0, 54, 40, 32, 32, 1, 16, 0, 2048, 0, 0, 0, 0) + bytes(2048),
    ],
)  # fmt: skip
def test_nothing_is_said_of_ordinary_images(data: bytes) -> None:
    assert survey_image("x", data).notes(folder_spec(Path("d"))) == []


def test_the_avif_of_a_phone_is_known_by_its_bits() -> None:
    data = bytearray(encoded(NOISE, "avif"))
    assert survey_image("x", bytes(data)).notes(folder_spec(Path("d"))) == []
    at = data.find(b"pixi")
    data[at + 9 : at + 12] = 10, 10, 10
    data[data.find(b"av1C") + 6] |= 0x40  # high bit depth
    assert survey_image("x", bytes(data)).groups["deep"].largest == 10


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (
            Image.fromarray(np.ones((16, 16), np.float32)),
            "32-bit values have no known range",
        ),
        (
            Image.fromarray(np.ones((16, 16), np.int32)),
            "32-bit values have no known range",
        ),
    ],
)
def test_pixels_without_a_known_range_are_skipped(image: Image.Image, reason: str, tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(NOISE, "png"))
    (tmp_path / "x.tiff").write_bytes(encoded(image, "tiff"))
    (tmp_path / "seven.tiff").write_bytes(tiff(7))
    skipped = load(tmp_path).skipped
    assert [reason in entry for entry in skipped] == [False, True]
    assert skipped[0].endswith(
        "seven.tiff: a TIFF that is damaged, or that needs data.intensity or data.bands to be read"
    )


# ------------------------------------------------------------------------------------------ 16-bit grey


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 15])
def test_fewer_bits_in_a_file_of_16_are_refused(kind: str, bits: int, tmp_path: Path, cache: Path) -> None:
    (tmp_path / "d").mkdir()
    for i in range(3):
        (tmp_path / "d" / f"{i}.png").write_bytes(encoded(grey16(2**bits - 1 - i), kind))
    told = (
        rf"d: the largest value of 3 grey images of 16 bits is {2**bits - 1}, which looks like {bits} bits.*data\.inten"
    )
    for refused in (
        lambda: load(tmp_path / "d"),
        lambda: check_listed(run_on(tmp_path / "d")),
        lambda: named_folder(str(tmp_path / "d"), folder_spec(tmp_path / "d")),
    ):
        with pytest.raises(FtaeError, match=told):
            refused()
    assert not (cache / "images").exists()


def test_one_image_of_all_bits_makes_the_set_one_of_16(tmp_path: Path) -> None:
    for folder, largest in (("train", 65535), ("val", 4000)):
        (tmp_path / folder).mkdir()
        for i in range(2):
            (tmp_path / folder / f"{i}.png").write_bytes(encoded(grey16(largest), "png"))
    both = folder_spec(tmp_path / "train", val=str(tmp_path / "val"))
    assert load_dataset(both).val.images.max() == 4000 >> 8
    assert validation_names(both) is not None
    with pytest.raises(FtaeError, match="looks like 12 bits"):
        load(tmp_path / "val")


@pytest.mark.parametrize(
    ("intensity", "expected"),
    [
        ({"bits": 12}, [0, 65535]),
        ({"bits": 16}, [0, 4095]),
        ({"window": [0, 4095]}, [0, 65535]),
        ({"window": [1000, 3000]}, [0, 65535]),
        ({"window": [0, 8190]}, [0, 32768]),
        ({"percentile": [0, 100]}, [0, 65535]),
        ({"dtype_range": True}, [0, 4095]),
        ({"per_image": "minmax"}, [0, 65535]),
    ],
)
def test_what_values_are_can_be_said(intensity: dict[str, Any], expected: list[int], tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(grey16(4095, side=16), "png"))
    data = load(tmp_path, color="grey", intensity=intensity)
    row = data.train.images[0, 8, :, 0].astype(int)
    assert [row.min(), row.max()] == expected
    assert (np.diff(row) >= 0).all()
    assert told(data) == ()
    again = load(tmp_path, color="grey", intensity={"window": [5, 4095]})
    assert again.fingerprint != data.fingerprint


def test_bits_that_the_values_exceed_are_refused(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(grey16(5000), "png"))
    with pytest.raises(FtaeError, match=r"is 5000, more than data\.intensity\.bits: 12 can hold; say \{bits: 13\}"):
        load(tmp_path, intensity={"bits": 12})


def test_all_16_bits_are_what_they_always_were(tmp_path: Path) -> None:
    """Where nothing is said: the upper 8."""
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(grey16(65535, side=16), "png"))
    data = load(tmp_path, color="grey")
    assert (data.train.images[0, 0, :, 0] == np.linspace(0, 65535, 16).round().astype(np.uint16) >> 8).all()
    assert load(tmp_path, color="grey", intensity={"bits": 16}).train.images.max() == 65535


def test_an_intensity_without_effect_is_said(tmp_path: Path) -> None:
    for i in range(2):
        (tmp_path / f"{i}.png").write_bytes(encoded(NOISE, "png"))
    assert told(load(tmp_path, intensity={"bits": 12})) == (
        f"{tmp_path}: data.intensity says 12 bits, but no image has more than 8",
    )


@pytest.mark.parametrize("maxval", [1023, 4095, 65535])
def test_pgm_is_read_by_the_range_that_it_names(maxval: int) -> None:
    values = np.tile(np.linspace(0, maxval, 16).round().astype(int), (16, 1))
    decoded = decode_image(ppm16(values, maxval), folder_spec(Path("d"), color="grey"))
    assert np.abs(decoded[8, :, 0].astype(float) - np.linspace(0, 255, 16)).max() <= 1


# ----------------------------------------------------------------------------------- transparent values


@pytest.mark.parametrize("value", [0, 1800, 57600])
def test_a_transparent_value_of_16_bits_is_white_and_all_others_as_they_were(value: int) -> None:
    grey = np.tile(np.arange(1, 33, dtype=np.uint16) * 1800, (32, 1))
    spec = folder_spec(Path("d"), resolution=32, color="grey")
    plain = decode_image(encoded(Image.fromarray(grey), "png"), spec)[..., 0]
    clear = decode_image(encoded(Image.fromarray(grey), "png", transparency=value), spec)[..., 0]
    assert (clear == np.where(grey == value, 255, plain)).all()


def test_a_transparent_colour_of_16_bits_is_that_colour() -> None:
    values = np.full((16, 16, 3), 0x2000, np.uint16)
    values[:, 8:] = 0x1234, 0x5678, 0x9ABC
    data = png16(2, values, struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    decoded = decode_image(data, folder_spec(Path("d")))
    assert decoded[8, 2].tolist() == [0x20] * 3
    assert decoded[8, 13].tolist() == [255] * 3


@pytest.mark.parametrize(("bits", "value"), [(1, 0), (2, 2), (4, 9), (8, 100)])
def test_a_transparent_value_of_few_bits_is_that_value(bits: int, value: int) -> None:
    """As in the file; Pillow compares it with pixels that it has stretched to 8 bits."""
    levels = np.full((8, 8), value, np.uint8)
    levels[:, 4:] = (value + 1) % 2**bits
    flat = np.unpackbits(levels.reshape(8, 8, 1), axis=2)[..., 8 - bits :].reshape(8, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in flat)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)) + chunk(b"tRNS", struct.pack(">H", value))
    data = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    decoded = decode_image(data, folder_spec(Path("d"), resolution=8, color="grey"))[..., 0]
    assert (decoded[:, :4] == 255).all()
    assert (decoded[:, 4:] == round((value + 1) % 2**bits * 255 / (2**bits - 1))).all()


def test_the_fingerprint_tells_pixels_that_were_once_taken_for_transparent(tmp_path: Path) -> None:
    """Of ordinary images it is what it was."""
    spec = folder_spec(tmp_path)
    for name, options, ordinary in (("a", {}, True), ("b", {"transparency": 0}, False)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "x.png").write_bytes(encoded(grey16(65535), "png", **options))
        part = folder_part(str(folder), spec)
        assert (part_keys(part, spec) == part_keys(replace(part, pixel_key=()), spec)) == ordinary


# --------------------------------------------------------------------------------------------- and more


@pytest.mark.parametrize(("sides", "said"), [([8] * 4, "all 4 images are"), ([8, 8, 8, 64], "3 of 4 images are")])
def test_images_that_are_enlarged_are_counted(sides: list[int], said: str, tmp_path: Path) -> None:
    for i, side in enumerate(sides):
        NOISE.transpose(Image.Transpose(i)).resize((side, 2 * side)).save(tmp_path / f"{i}.png")
    assert load(tmp_path).notes == (f"{tmp_path}: {said} smaller than 16 pixels and are enlarged",)
    assert load(tmp_path, resolution=8).notes == ()
    assert load(tmp_path, resolution=8, random_crop_from=16).notes != ()


def test_of_many_files_validate_opens_some(tmp_path: Path) -> None:
    dark = encoded(grey16(4095, side=16), "png")
    for i in range(NUM_GLANCED + 1):
        (tmp_path / f"{i}.png").write_bytes(dark)
    (note,) = [line for line in check_listed(run_on(tmp_path)) if "looks like" in line]
    assert note.startswith(f"of the first {NUM_GLANCED} images looked at: {tmp_path}: the largest value")


def test_pillow_is_silent(tmp_path: Path) -> None:
    """Of odd files its warnings and log lines would stand on stderr, without a name."""
    exif = Image.Exif()
    exif[0x0112] = 1
    (tmp_path / "exif.jpg").write_bytes(encoded(NOISE, "jpeg", exif=exif).replace(b"Exif\0\0MM", b"Exif\0\0ZZ"))
    palette = Image.new("P", (16, 16))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    (tmp_path / "palette.png").write_bytes(encoded(palette, "png", transparency=b"\x80\xff"))
    cut = encoded(NOISE, "tiff")
    (tmp_path / "cut.tiff").write_bytes(cut[: len(cut) - 40])
    (tmp_path / "seven.tiff").write_bytes(tiff(9))
    (tmp_path / "bomb.png").write_bytes(encoded(Image.new("1", (12000, 9000)), "png"))
    (tmp_path / "larger.png").write_bytes(encoded(Image.new("1", (16000, 14000)), "png"))
    code = (
        "import sys; from ftae.engine.data.dataset import load_dataset\n"
        "from ftae.specs.finetune.sources.folders import ImageFolder\n"
        "data = load_dataset(ImageFolder(source='image_folder', train=sys.argv[1], resolution=8))\n"
        "print(*data.skipped, sep='\\n')"
    )
    command = [sys.executable, "-W", "default", "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stderr == ""
    names = [Path(line.partition(": ")[0]).name for line in result.stdout.splitlines()]
    assert names == ["cut.tiff", "larger.png", "seven.tiff"]


def test_the_hand_written_tiff_is_one() -> None:
    with Image.open(io.BytesIO(tiff(3))) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        assert np.asarray(image).tolist() == [[[100] * 3] * 16] * 16
