"""A search in a folder that every node sees."""

import shutil
import uuid
from pathlib import Path

from ftae.storage.journal import FILE_NAME as JOURNAL


class FolderStore:
    """The files of one search below ``folder``. Nothing is copied: every node sees what any node writes."""

    appends_atomically = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        return (self.folder / JOURNAL).exists()

    def refresh(self) -> None:
        """Nothing to do: ``folder`` is the search itself."""

    def replicate(self, offset: int, line: bytes) -> bool:
        """Returns False: the journal in ``folder`` is the only one."""
        return False

    def push(self, path: str) -> None:
        """Nothing to do: what lies in ``folder`` is stored already."""

    def fetch(self, path: str) -> Path:
        return self.folder / path

    def release(self, path: str) -> None:
        """Nothing to do: there is no local copy to drop."""

    def remove(self, path: str) -> None:
        remove_file_or_folder(self.folder / path)

    def names(self, path: str) -> list[str]:
        folder = self.folder / path
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def create(self, path: str, data: bytes) -> bool:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with file.open("xb") as new:
                new.write(data)
        except FileExistsError:
            return False
        return True

    def write(self, path: str, data: bytes) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}.tmp")
        try:
            temporary.write_bytes(data)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def read(self, path: str) -> bytes | None:
        try:
            return (self.folder / path).read_bytes()
        except FileNotFoundError:
            return None


def remove_file_or_folder(path: Path) -> None:
    """Delete ``path``, which need not exist."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
