"""Where files live: a folder, or anything that fsspec has a driver for (``s3://…``, ``gs://…``, ``memory://``).

A file is there whole or not at all. In a folder, and on file systems that are one, it is written under a temporary name
and then moved; in an object store one put is atomic. Any number of processes may share a place.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, Protocol
from urllib.parse import unquote

import fsspec
from fsspec.registry import known_implementations

from tuner.errors import BadInputError, StorageError

# Drivers whose put either happens or does not; the others are file systems, where a file grows.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "memory"}


class Files(Protocol):
    """One flat place with files. Reading and writing raise OSError with the reason."""

    def write(self, name: str, content: bytes) -> None: ...

    def read(self, name: str) -> bytes: ...

    def open(self, name: str) -> BinaryIO: ...

    def remove(self, names: Collection[str]) -> None: ...

    def clear(self) -> None: ...

    def names(self, older_than_s: float = 0.0) -> list[str]: ...


def parse_root(text: str | Path) -> str | Path:
    """A folder as a path, anything else as its URL.

    Raises BadInputError for a URL that no driver knows, or whose driver is not installed.
    """
    scheme, separator, rest = str(text).partition("://")
    if isinstance(text, Path) or not separator:
        return Path(text)
    if scheme in ("file", "local"):
        return Path(unquote(rest))
    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError:
        raise BadInputError(
            f"artifacts: {scheme}:// is no file system that fsspec knows; give a folder, or a URL such as s3://bucket/path"
        ) from None
    except ImportError as error:
        known = known_implementations.get(scheme, {})
        package = known.get("class", "").partition(".")[0]
        fix = f"pip install {package}" if package not in ("", "fsspec") else str(known.get("err") or error)
        raise BadInputError(f"artifacts: {scheme}:// needs a driver that is not installed: {fix}") from None
    return str(text).rstrip("/")


def below(root: str | Path, name: str) -> str | Path:
    """A place inside a place."""
    return root / name if isinstance(root, Path) else f"{root}/{name}"


def shown(root: str | Path) -> str:
    """A place as a message may show it: without a password or a query.

    >>> shown("sftp://me:secret@host/path?token=1")
    'sftp://me:***@host/path'
    """
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", str(root)).partition("?")[0]


def open_files(root: str | Path) -> Files:
    """The files of a place that :func:`parse_root` gave."""
    return Folder(root) if isinstance(root, Path) else Remote(root)


class Folder:
    """A folder of this machine, or one that is mounted. Made when its first file is written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, content: bytes) -> None:
        """On return the file is complete and on disk. Where that fails nothing is left."""
        unfinished = self.root / f".{name}.tmp"
        try:
            self._make()
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.root / name)
            self._sync()
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
                (self.root / name).unlink(missing_ok=True)
            raise

    def read(self, name: str) -> bytes:
        """The whole file."""
        return (self.root / name).read_bytes()

    def open(self, name: str) -> BinaryIO:
        """The file, to read from."""
        return (self.root / name).open("rb")

    def remove(self, names: Collection[str]) -> None:
        """Delete files. One that is gone already, or cannot be deleted, is left alone."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.root / name).unlink()

    def clear(self) -> None:
        """Delete the whole folder."""
        shutil.rmtree(self.root, ignore_errors=True)

    def names(self, older_than_s: float = 0.0) -> list[str]:
        """The files that were last written so many seconds ago or earlier, unfinished ones included."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self.root):
                with contextlib.suppress(FileNotFoundError):  # deleted by another process at this moment
                    if entry.is_file() and time.time() - entry.stat().st_mtime >= older_than_s:
                        found.append(entry.name)
        return sorted(found)

    def _make(self) -> None:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except FileExistsError:  # mkdir's word for a file that is in the way
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(self.root)) from None

    def _sync(self) -> None:
        """Make the move itself durable."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Remote:
    """A place that fsspec has a driver for. Drivers raise what they like; here it is StorageError."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._system, self._path = self._call("be reached", lambda: fsspec.url_to_fs(url))

    def write(self, name: str, content: bytes) -> None:
        """On return the file is complete."""
        self._call("be written", lambda: self._write(name, content))

    def _write(self, name: str, content: bytes) -> None:
        protocol = self._system.protocol
        if _OBJECT_STORES & set((protocol,) if isinstance(protocol, str) else protocol):
            self._system.pipe_file(f"{self._path}/{name}", content)
            return
        self._system.makedirs(self._path, exist_ok=True)
        unfinished = f"{self._path}/.{name}.tmp"
        try:
            self._system.pipe_file(unfinished, content)
            self._system.mv(unfinished, f"{self._path}/{name}")
        except BaseException:
            self.remove([f".{name}.tmp"])
            raise

    def read(self, name: str) -> bytes:
        """The whole file."""
        content: bytes = self._call("be read", lambda: self._system.cat_file(f"{self._path}/{name}"))
        return content

    def open(self, name: str) -> BinaryIO:
        """As :meth:`Folder.open`; read as a whole. Raises FileNotFoundError as such, where the driver does."""
        try:
            return io.BytesIO(self.read(name))
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from None
            raise

    def remove(self, names: Collection[str]) -> None:
        """As :meth:`Folder.remove`."""
        for name in names:
            with contextlib.suppress(Exception):
                self._system.rm_file(f"{self._path}/{name}")

    def clear(self) -> None:
        """As :meth:`Folder.clear`."""
        with contextlib.suppress(Exception):
            self._system.rm(self._path, recursive=True)

    def names(self, older_than_s: float = 0.0) -> list[str]:
        """As :meth:`Folder.names`; none where the driver does not say when a file was written."""
        found: list[str] = self._call("be listed", lambda: self._names(older_than_s))
        return found

    def _names(self, older_than_s: float) -> list[str]:
        self._system.invalidate_cache()
        try:
            paths = [entry["name"] for entry in self._system.ls(self._path, detail=True) if entry["type"] == "file"]
            ages = {path: time.time() - self._system.modified(path).timestamp() for path in paths}
        except (FileNotFoundError, NotImplementedError):
            return []
        return sorted(path.rpartition("/")[2] for path, age in ages.items() if age >= older_than_s)

    def _call(self, what: str, call: Any) -> Any:
        try:
            return call()
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            raise StorageError(f"{shown(self.url)}: cannot {what}: {told}") from error
