import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.errors import StorageError
from tuner.storage.checkpoints import Checkpoint, CheckpointError, CheckpointStore

STATES = {
    7: {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(41, dtype=np.int64)},
    12: {"weights": np.full((2, 3), 0.1, dtype=np.float64), "masked": np.array([True, False])},
}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "artifacts" / "study")


def test_lanes_come_back_bit_for_bit(store: CheckpointStore) -> None:
    checkpoint = store.write(STATES)
    for number, state in STATES.items():
        back = store.read(checkpoint, number)
        assert back.keys() == state.keys()
        for name, array in state.items():
            assert back[name].dtype == array.dtype
            assert back[name].shape == array.shape
            np.testing.assert_array_equal(back[name], array)
    assert [path.name for path in store.root.iterdir()] == [checkpoint.name]
    assert store.read_pack(checkpoint, [7, 12]).keys() == {7, 12}


def test_arrays_that_are_not_contiguous(store: CheckpointStore) -> None:
    array = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(store.read(store.write({1: {"a": array}}), 1)["a"], array)


def test_a_missing_file(store: CheckpointStore) -> None:
    checkpoint = store.write(STATES)
    store.remove([checkpoint.name, "never-there.safetensors"])
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        store.read(checkpoint, 7)


def test_a_changed_byte(store: CheckpointStore) -> None:
    checkpoint = store.write(STATES)
    path = store.root / checkpoint.name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt: its SHA-256"):
        store.read(checkpoint, 7)


def test_a_short_file(store: CheckpointStore) -> None:
    checkpoint = store.write(STATES)
    path = store.root / checkpoint.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"has {checkpoint.bytes - 1} bytes, {checkpoint.bytes} were written"):
        store.read(checkpoint, 7)


def test_a_lane_it_does_not_hold(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="does not hold trial 8"):
        store.read(store.write(STATES), 8)


def test_a_file_that_is_not_safetensors(store: CheckpointStore) -> None:
    import hashlib

    store.root.mkdir(parents=True)
    content = b"\x80\x04pickle"
    (store.root / "x").write_bytes(content)
    checkpoint = Checkpoint(name="x", sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        store.read(checkpoint, 7)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_no_half_file(store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    kept = store.write(STATES)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"cannot be written \(No space left on device\); free some space"):
        store.write(STATES)
    assert [path.name for path in store.root.iterdir()] == [kept.name]
    assert store.read(kept, 7).keys() == STATES[7].keys()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="give another --artifacts"):
        CheckpointStore(tmp_path / "file" / "study").write(STATES)


def test_clear_takes_the_folder_away(store: CheckpointStore) -> None:
    store.write(STATES)
    store.clear()
    store.clear()
    assert not store.root.exists()
