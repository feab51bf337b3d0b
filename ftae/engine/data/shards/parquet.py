"""Parquet shards: a column with images, as Hugging Face's datasets have them, and others with labels and groups.

Bytes of a row can be read only with all of its row group. The last groups read are kept, so that rows in the order in
which they are stored are read once.
"""

import json
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

from ftae.engine.data.files.decoding import UnreadableImage
from ftae.engine.data.shards.places import Shard, ShardFiles, cannot_read
from ftae.engine.data.shards.samples import Choice, Found, group_text, label_text
from ftae.errors import FtaeError

LABEL = "label"
KEPT_BYTES = 2**28  # of row groups that were read


def index_parquet(files: ShardFiles, shard: Shard, choice: Choice) -> list[Found]:
    """The images of a Parquet file; ``offset`` is the number of a row group, ``length`` that of a row in it.

    Raises:
        FtaeError: the file cannot be read or is damaged, or it is not clear which column has the images.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with files.open(shard) as file:
            parquet = ParquetFile(file)
            schema = parquet.schema_arrow
            image, label = _image_column(schema, choice, shard), _label_column(schema, choice, shard)
            names, by = _class_names(schema, label), _column(schema, choice.group, "data.groups.column", shard)
            path_column = f"{image}.path" if _has_paths(schema, image) else None
            wanted = [column for column in (path_column, label, by) if column]
            found: list[Found] = []
            for group in range(parquet.num_row_groups):
                table = parquet.read_row_group(group, columns=wanted) if wanted else None
                for row in range(parquet.metadata.row_group(group).num_rows):
                    where = f"{shard.path}, row {len(found)}"
                    path = table[image][row]["path"].as_py() if table and path_column else None
                    text = _label(table[label][row].as_py(), names, where) if table and label else None
                    belongs = group_text(table[by][row].as_py(), where) if table and by else None
                    found.append(Found(path or f"{len(found):08d}", group, row, text, belongs))
            return found
    except pa.ArrowException as error:
        raise FtaeError(f"{shard.path} is no Parquet file, or was cut off or damaged: {error}") from error
    except OSError as error:
        raise cannot_read(shard, error) from error


def holds_images(file: Path) -> bool:
    """Whether a Parquet file has a column that may hold images; False for another or a damaged file."""
    import pyarrow as pa
    from pyarrow.parquet import read_schema

    try:
        return bool(_image_columns(read_schema(file)))
    except (OSError, pa.ArrowException):
        return False


def _image_columns(schema: Any) -> list[str]:
    import pyarrow.types as kinds

    return [
        column.name
        for column in schema
        if kinds.is_binary(column.type)
        or kinds.is_large_binary(column.type)
        or (kinds.is_struct(column.type) and "bytes" in {field.name for field in column.type})
    ]


def _image_column(schema: Any, choice: Choice, shard: Shard) -> str:
    images = _image_columns(schema)
    if choice.image in images:
        return choice.image
    if choice.image is None and len(images) == 1:
        return images[0]
    raise FtaeError(
        f"{shard.path}: data.image must name a column with images, of {', '.join(images) or 'which there is none'}"
        + (f"; got {choice.image}" if choice.image else "")
    )


def _label_column(schema: Any, choice: Choice, shard: Shard) -> str | None:
    if choice.label is None:
        return LABEL if LABEL in schema.names else None
    return _column(schema, choice.label, "data.label", shard)


def _column(schema: Any, name: str | None, leaf: str, shard: Shard) -> str | None:
    if name is not None and name not in schema.names:
        raise FtaeError(f"{shard.path}: {leaf} must be a column, of {', '.join(schema.names)}; got {name}")
    return name


def _has_paths(schema: Any, image: str) -> bool:
    import pyarrow.types as kinds

    kind = schema.field(image).type
    return kinds.is_struct(kind) and "path" in {field.name for field in kind}


def _class_names(schema: Any, label: str | None) -> list[str] | None:
    """The names of classes that Hugging Face's datasets writes into the file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
    except (TypeError, LookupError, ValueError):
        return None
    return [str(name) for name in names] if isinstance(names, list) else None


def _label(value: Any, names: list[str] | None, where: str) -> str:
    if names is not None and isinstance(value, int) and 0 <= value < len(names):
        return names[value]
    return label_text(value, where)


class RowGroups:
    """Reads images by row group and row; several threads may read."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: OrderedDict[tuple[str, int], Any] = OrderedDict()

    def read(self, files: ShardFiles, shard: Shard, group: int, row: int, choice: Choice) -> bytes:
        """Raises as ``ImageFiles.read``."""
        with self._lock:
            column = self._kept.get((shard.path, group))
            if column is None:
                column = self._kept[shard.path, group] = _bytes_of(files, shard, group, choice)
            self._kept.move_to_end((shard.path, group))
            while len(self._kept) > 1 and sum(each.nbytes for each in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        data = column[row].as_py()
        if data is None:
            raise UnreadableImage("the shard has no bytes of it")
        return bytes(data)


def _bytes_of(files: ShardFiles, shard: Shard, group: int, choice: Choice) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as kinds
    from pyarrow.parquet import ParquetFile

    try:
        with files.open(shard) as file:
            parquet = ParquetFile(file)
            image = _image_column(parquet.schema_arrow, choice, shard)
            is_struct = kinds.is_struct(parquet.schema_arrow.field(image).type)
            column = parquet.read_row_group(group, columns=[f"{image}.bytes" if is_struct else image])[image]
            return pc.struct_field(column, "bytes") if is_struct else column
    except pa.ArrowException as error:
        raise UnreadableImage(f"damaged in the shard: {error}") from error
    except OSError as error:
        raise cannot_read(shard, error) from error
