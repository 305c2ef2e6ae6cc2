"""Attachments: files that a study carries as Optuna's artifacts, where optuna-dashboard and Optuna's functions look.

All studies of a place share one flat folder in it, ``attached``, so that ``FileSystemArtifactStore`` of Optuna reads it
as well. What it holds is said by Optuna's tables: see :func:`tuner.storage.records.attach`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from optuna.artifacts.exceptions import ArtifactNotFound

from tuner.errors import StorageError
from tuner.storage.artifacts import below, open_files, shown

FOLDER = "attached"
MAX_BYTES = 64 * 2**20  # of one attachment: what a dashboard hands out without a thought


class Attachments:
    """An artifact store of Optuna's in the artifacts' root: a folder, or any URL that fsspec has a driver for.

    Nothing is made before the first file is written, and a file is there whole or not at all.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = below(root, FOLDER)
        self._files = open_files(self.root)

    def save(self, artifact_id: str, content: bytes) -> None:
        """Raises StorageError when there is too much of it, no room, or no right to write."""
        size = f"{len(content) / 1e3:,.0f} kB"
        if len(content) > MAX_BYTES:
            raise StorageError(f"a file of {size} is too large to be attached, {MAX_BYTES / 1e6:.0f} MB are the most")
        try:
            self._files.write(_checked(artifact_id), content)
        except OSError as error:
            raise StorageError(
                f"{shown(self.root)}: a file of {size} cannot be written ({error.strerror or error}); free some space "
                "or give another --artifacts; nothing stored is lost"
            ) from error

    def discard(self, artifact_ids: Collection[str]) -> None:
        """Delete files. One that is gone already, or cannot be deleted, is left alone."""
        self._files.remove([_checked(artifact_id) for artifact_id in artifact_ids])

    # Optuna's protocol

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """A file to read. Raises ArtifactNotFound where there is none, StorageError where it cannot be read."""
        try:
            return self._files.open(_checked(artifact_id))
        except FileNotFoundError as error:
            raise ArtifactNotFound(f"no file {artifact_id} in {shown(self.root)}") from error
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"{shown(self.root)}: cannot be read: {error.strerror or error}") from error

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """As :meth:`save`."""
        self.save(artifact_id, content_body.read(MAX_BYTES + 1))

    def remove(self, artifact_id: str) -> None:
        """As :meth:`discard`."""
        self.discard([artifact_id])


def _checked(artifact_id: str) -> str:
    """A name that leads nowhere else. Raises ArtifactNotFound."""
    if not re.fullmatch(r"[0-9a-fA-F-]{1,64}", artifact_id):
        raise ArtifactNotFound(f"{artifact_id!r} is no artifact's id")
    return artifact_id
