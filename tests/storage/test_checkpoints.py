import errno
import os
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tuner.errors import BadInputError, StorageError
from tuner.storage.artifacts import Remote, below, parse_root, shown
from tuner.storage.checkpoints import Checkpoint, CheckpointError, CheckpointStore

STATES = {
    7: {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.array(41, dtype=np.int64)},
    12: {"weights": np.full((2, 3), 0.1, dtype=np.float64), "masked": np.array([True, False])},
}


@pytest.fixture(params=["folder", "memory", "remote"])
def anywhere(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    """A store in a folder, in an object store, and on a file system that only fsspec can reach."""
    if request.param == "memory":
        return CheckpointStore(f"memory://{tmp_path.name}-{uuid.uuid4().hex}/study")
    store = CheckpointStore(tmp_path / "study")
    if request.param == "remote":
        monkeypatch.setattr(store, "_files", Remote(f"file://{tmp_path / 'study'}"))
    return store


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "artifacts" / "study")


def test_lanes_come_back_bit_for_bit(anywhere: CheckpointStore) -> None:
    store = anywhere
    checkpoint = store.write(STATES)
    for number, state in STATES.items():
        back = store.read_pack(checkpoint, [number])[number]
        assert back.keys() == state.keys()
        for name, array in state.items():
            assert back[name].dtype == array.dtype
            assert back[name].shape == array.shape
            np.testing.assert_array_equal(back[name], array)
    assert store.names() == [checkpoint.name]
    assert store.names(older_than_s=3600) == []
    assert store.read_pack(checkpoint, [7, 12]).keys() == {7, 12}


def test_arrays_that_are_not_contiguous(store: CheckpointStore) -> None:
    array = np.arange(12.0).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(store.read_pack(store.write({1: {"a": array}}), [1])[1]["a"], array)


def test_a_missing_file(anywhere: CheckpointStore) -> None:
    store = anywhere
    assert store.names() == []
    checkpoint = store.write(STATES)
    store.remove([checkpoint.name, "never-there.safetensors"])
    with pytest.raises(CheckpointError, match="the checkpoint cannot be read: "):
        store.read_pack(checkpoint, [7])
    assert store.names() == []
    store.write(STATES)
    store.clear()
    assert store.names() == []


def test_a_changed_byte(store: CheckpointStore) -> None:
    checkpoint = store.write(STATES)
    path = store.root / checkpoint.name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="corrupt: its SHA-256"):
        store.read_pack(checkpoint, [7])


def test_a_short_file(store: CheckpointStore) -> None:
    checkpoint = store.write(STATES)
    path = store.root / checkpoint.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=f"has {checkpoint.bytes - 1} bytes, {checkpoint.bytes} were written"):
        store.read_pack(checkpoint, [7])


def test_a_lane_it_does_not_hold(store: CheckpointStore) -> None:
    with pytest.raises(CheckpointError, match="does not hold trial 8"):
        store.read_pack(store.write(STATES), [8])


def test_a_file_that_is_not_safetensors(store: CheckpointStore) -> None:
    import hashlib

    store.root.mkdir(parents=True)
    content = b"\x80\x04pickle"
    (store.root / "x").write_bytes(content)
    checkpoint = Checkpoint(name="x", sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        store.read_pack(checkpoint, [7])


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
    assert store.read_pack(kept, [7])[7].keys() == STATES[7].keys()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="give another --artifacts"):
        CheckpointStore(tmp_path / "file" / "study").write(STATES)


def test_clear_takes_the_folder_away(store: CheckpointStore) -> None:
    store.write(STATES)
    store.clear()
    store.clear()
    assert not store.root.exists()


class TestPlaces:
    """--artifacts as people write it."""

    @pytest.mark.parametrize(
        ("text", "place"),
        [
            ("here", Path("here")),
            ("file:///mnt/a%20b", Path("/mnt/a b")),
            ("memory://x/y/", "memory://x/y"),
            (Path("/x"), Path("/x")),
        ],
        ids=str,
    )
    def test_folders_and_urls(self, text: str | Path, place: str | Path) -> None:
        assert parse_root(text) == place

    def test_a_place_inside_a_place(self) -> None:
        assert below(Path("a"), "b") == Path("a/b")
        assert below("memory://a", "b") == "memory://a/b"

    def test_an_unknown_scheme(self) -> None:
        with pytest.raises(BadInputError, match=r"artifacts: gopher:// is no file system that fsspec knows; give a f"):
            parse_root("gopher://host/x")

    @pytest.mark.parametrize(
        ("module", "url", "fix"),
        [("s3fs", "s3://bucket/x", "pip install s3fs"), ("paramiko", "sftp://h/x", "paramiko")],
    )
    def test_a_missing_driver(self, module: str, url: str, fix: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(BadInputError, match=f"artifacts: (s3|sftp):// needs a driver that is not .*: .*{fix}"):
            parse_root(url)

    def test_passwords_are_not_shown(self) -> None:
        assert shown("sftp://me:secret@host/x?key=1") == "sftp://me:***@host/x"
        assert shown("s3://bucket/x") == "s3://bucket/x"

    def test_a_place_that_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A driver raises what it likes; here it is one error that names the place, without its password."""
        store = CheckpointStore("memory://me:secret@x/study")

        def broken(*_: Any, **__: Any) -> None:
            raise LookupError("no such bucket")

        monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.pipe_file", broken)
        with pytest.raises(
            StorageError, match=r"memory://me:\*\*\*@x/study: a checkpoint .*no such bucket.*--artifacts"
        ):
            store.write(STATES)

    def test_a_file_system_shows_no_half_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a put is not atomic, what is not complete has another name, and goes when writing fails."""
        remote = Remote(f"file://{tmp_path}")

        def fails(*_: Any, **__: Any) -> None:
            assert [path for path in tmp_path.iterdir() if path.name.startswith(".x")], "written under another name"
            raise OSError("connection lost")

        monkeypatch.setattr(remote._system, "mv", fails)
        with pytest.raises(StorageError, match="cannot be written: connection lost"):
            remote.write("x", b"content")
        assert list(tmp_path.iterdir()) == []
