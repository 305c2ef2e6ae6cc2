"""Checkpoints: the lanes of a pack in one safetensors file, written whole or not at all, hashed, never pickled."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
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
    """The checkpoint files of one study, in one folder that is made when the first is written.

    Any number of processes may use it at once: a name is written once and never changed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, states: Mapping[int, Mapping[str, NDArray[Any]]]) -> Checkpoint:
        """Store the arrays of each lane (slot number). On return the file is complete and on disk.

        Raises StorageError when the folder cannot be written or the disk is full; no file is left then.
        """
        arrays = {
            f"{number}/{name}": array if array.flags.c_contiguous else array.copy(order="C")
            for number, state in states.items()
            for name, array in state.items()
        }
        content = save(arrays)
        name = f"{uuid.uuid4().hex}.safetensors"
        unfinished = self.root / f".{name}.tmp"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.root / name)
            self._sync_folder()
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
                (self.root / name).unlink(missing_ok=True)
            raise StorageError(
                f"{self.root}: a checkpoint of {len(content) / 1e6:.1f} MB cannot be written "
                f"({error.strerror or error}); free some space or give another --artifacts; nothing stored is lost"
            ) from error
        return Checkpoint(name=name, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))

    def read(self, checkpoint: Checkpoint, number: int) -> State:
        """The arrays of one lane. Raises CheckpointError as :meth:`read_pack`."""
        return self.read_pack(checkpoint, [number])[number]

    def read_pack(self, checkpoint: Checkpoint, numbers: Collection[int]) -> dict[int, State]:
        """The arrays of several lanes, with the file read and its hash checked once.

        Raises CheckpointError when the file is missing, short or changed, or does not hold one of the lanes.
        """
        path = self.root / checkpoint.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{path}: the checkpoint cannot be read: {error.strerror or error}") from error
        if len(content) != checkpoint.bytes:
            raise CheckpointError(f"{path}: the checkpoint has {len(content)} bytes, {checkpoint.bytes} were written")
        if hashlib.sha256(content).hexdigest() != checkpoint.sha256:
            raise CheckpointError(f"{path}: the checkpoint is corrupt: its SHA-256 is not the stored one")
        try:
            arrays = load(content)
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{path}: the checkpoint is not a safetensors file: {error}") from error
        states: dict[int, State] = {number: {} for number in numbers}
        for key, array in arrays.items():
            number, _, name = key.partition("/")
            if int(number) in states:
                states[int(number)][name] = np.asarray(array)
        if missing := sorted(number for number, state in states.items() if not state):
            raise CheckpointError(f"{path}: the checkpoint does not hold trial {', '.join(map(str, missing))}")
        return states

    def remove(self, names: Collection[str]) -> None:
        """Delete files that nothing needs any more. One that is gone already, or cannot be deleted, is left alone."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.root / name).unlink()

    def clear(self) -> None:
        """Delete the whole folder."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _sync_folder(self) -> None:
        """Make the rename itself durable."""
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
