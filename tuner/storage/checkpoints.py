"""Checkpoints: the lanes of a pack in one safetensors file, written whole or not at all, hashed, never pickled."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tuner.errors import StorageError
from tuner.storage.artifacts import open_files, shown

State = dict[str, NDArray[Any]]


class CheckpointError(StorageError):
    """A checkpoint file is missing, or its content is not what was written. The lane can be trained again instead."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One file of a store: its name there, the SHA-256 of its content, its size."""

    name: str
    sha256: str
    bytes: int


class CheckpointStore:
    """The checkpoint files of one study, in one place of their own (see :mod:`tuner.storage.artifacts`).

    Any number of processes may use it at once: a name is written once and never changed.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = root
        self._files = open_files(root)

    def write(self, states: Mapping[int, Mapping[str, NDArray[Any]]]) -> Checkpoint:
        """Store the arrays of each lane (slot number). On return the file is complete and on disk.

        Raises StorageError when the place cannot be written or the disk is full; no file is left then.
        """
        arrays = {
            f"{number}/{name}": array if array.flags.c_contiguous else array.copy(order="C")
            for number, state in states.items()
            for name, array in state.items()
        }
        content = save(arrays)
        name = f"{uuid.uuid4().hex}.safetensors"
        try:
            self._files.write(name, content)
        except OSError as error:
            raise StorageError(
                f"{shown(self.root)}: a checkpoint of {len(content) / 1e6:.1f} MB cannot be written "
                f"({error.strerror or error}); free some space or give another --artifacts; nothing stored is lost"
            ) from error
        return Checkpoint(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))

    def read_pack(self, checkpoint: Checkpoint, numbers: Collection[int]) -> dict[int, State]:
        """The arrays of several lanes, with the file read and its hash checked once.

        Raises CheckpointError when the file is missing, short or changed, or does not hold one of the lanes.
        """
        where = f"{shown(self.root)}/{checkpoint.name}"
        try:
            content = self._files.read(checkpoint.name)
        except OSError as error:
            raise CheckpointError(f"{where}: the checkpoint cannot be read: {error.strerror or error}") from error
        if len(content) != checkpoint.bytes:
            raise CheckpointError(f"{where}: the checkpoint has {len(content)} bytes, {checkpoint.bytes} were written")
        if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
            raise CheckpointError(f"{where}: the checkpoint is corrupt: its SHA-256 is not the stored one")
        try:
            arrays = load(content)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{where}: the checkpoint is not a safetensors file: {error}") from error
        states: dict[int, State] = {number: {} for number in numbers}
        for key, array in arrays.items():
            number, _, name = key.partition("/")
            if int(number) in states:
                states[int(number)][name] = np.asarray(array)
        if missing := sorted(number for number, state in states.items() if not state):
            raise CheckpointError(f"{where}: the checkpoint does not hold trial {', '.join(map(str, missing))}")
        return states

    def names(self, older_than_s: float = 0.0) -> list[str]:
        """The files that were written so many seconds ago or earlier, those included that somebody did not finish.

        Raises StorageError when the place cannot be listed.
        """
        return self._files.names(older_than_s)

    def remove(self, names: Collection[str]) -> None:
        """Delete files that nothing needs any more. One that is gone already, or cannot be deleted, is left alone."""
        self._files.remove(names)

    def clear(self) -> None:
        """Delete all of them."""
        self._files.clear()
