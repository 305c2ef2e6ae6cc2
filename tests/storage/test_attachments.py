"""Attachments: files that a study carries as artifacts of Optuna's, replaced as a whole, gone with the study."""

import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta, upload_artifact
from optuna.artifacts.exceptions import ArtifactNotFound

from tests.spaces import study as spaces_study
from tests.storage.fleet import create, make_spec
from tuner.errors import StorageError, StudyNotFoundError
from tuner.manager import StudyManager
from tuner.storage import attachments
from tuner.storage.attachments import Attachments


@contextmanager
def optunas_own(manager: StudyManager) -> Iterator[optuna.Study]:
    """The study as Optuna has it."""
    storage = manager._database.optuna_storage()
    yield optuna.load_study(study_name="fleet", storage=storage)
    storage.remove_session()
    storage.engine.dispose()


def files(manager: StudyManager) -> dict[str, bytes]:
    """All files of the place, temporary ones included, with their content."""
    folder = Path(manager.attachments.root)
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def listed(manager: StudyManager) -> list[tuple[str, str]]:
    with optunas_own(manager) as study:
        return sorted((meta.filename, meta.artifact_id) for meta in get_all_artifact_meta(study))


def test_what_is_attached_is_an_artifact_of_optunas(manager: StudyManager, tmp_path: Path) -> None:
    create(manager, make_spec(9))
    manager.attach("fleet", "model", "fleet-model.zip", b"zip")
    first = manager.attach("fleet", "report", "fleet-report.html", b"<p>one")
    second = manager.attach("fleet", "report", "fleet-report.html", b"<p>two")
    assert first != second
    assert [name for name, _ in listed(manager)] == ["fleet-model.zip", "fleet-report.html"], "the older one has gone"
    assert sorted(files(manager).values()) == [b"<p>two", b"zip"]
    store = FileSystemArtifactStore(str(manager.attachments.root))
    download_artifact(artifact_store=store, artifact_id=second, file_path=str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"<p>two", "Optuna's own store reads the place"
    with manager.attachments.open_reader(second) as content:
        assert content.read() == b"<p>two"


def test_many_at_once_leave_one(manager: StudyManager) -> None:
    create(manager, make_spec(9))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: manager.attach("fleet", "report", f"{i}.html", b"%d" % i), range(8)))
    ((name, identity),) = listed(manager)
    assert identity in made
    assert files(manager) == {identity: name.removesuffix(".html").encode()}


def test_a_deleted_study_takes_all_of_it_along_and_nothing_else(manager: StudyManager, tmp_path: Path) -> None:
    ledger = create(manager, make_spec(9))
    ledger.claim(ledger.register("host", 1, "cpu", "0"), limit=2, lease_s=60)
    create(manager, spaces_study(study={"name": "other"}, search={"trials": 9}))
    kept = manager.attach("other", "report", "other.html", b"other")
    manager.attach("fleet", "report", "fleet.html", b"mine")
    (tmp_path / "picture.png").write_bytes(b"uploaded")
    with optunas_own(manager) as study:
        for target in (study, study.trials[0]):
            upload_artifact(
                artifact_store=manager.attachments,
                file_path=str(tmp_path / "picture.png"),
                study_or_trial=target,
                storage=study._storage,
            )
    assert len(files(manager)) == 4
    manager.delete("fleet")
    assert files(manager) == {kept: b"other"}


class TestTrouble:
    """A file that cannot be stored changes nothing."""

    @pytest.fixture
    def url(self, sqlite_url: str) -> str:
        return sqlite_url

    def stays(self, manager: StudyManager, match: str, content: bytes = b"new", error: Any = StorageError) -> None:
        """One more attachment is refused, and the one before is there as it was."""
        before = listed(manager)
        with pytest.raises(error, match=match):
            manager.attach("fleet", "report", "fleet.html", content)
        assert listed(manager) == before

    def test_a_full_disk(self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
        create(manager, make_spec(9))
        identity = manager.attach("fleet", "report", "fleet.html", b"old")

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
        self.stays(manager, r"attached: a file of 0 kB cannot be written \(No space left on device\); free some")
        assert files(manager) == {identity: b"old"}

    def test_a_place_that_is_no_folder(self, manager: StudyManager, tmp_path: Path) -> None:
        create(manager, make_spec(9))
        (tmp_path / "artifacts").write_text("a file")
        self.stays(manager, r"cannot be written \(Not a directory\)")

    def test_a_file_that_is_too_large(self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
        create(manager, make_spec(9))
        monkeypatch.setattr(attachments, "MAX_BYTES", 10)
        manager.attach("fleet", "report", "fleet.html", b"x" * 10)
        self.stays(manager, "too large to be attached", b"x" * 11)

    def test_a_database_that_takes_no_more(self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
        create(manager, make_spec(9))
        identity = manager.attach("fleet", "report", "fleet.html", b"old")

        def gone(*_: Any) -> None:
            raise StorageError("the database is gone")

        monkeypatch.setattr(manager._database, "write", gone)
        self.stays(manager, "the database is gone")
        assert files(manager) == {identity: b"old"}, "nothing that no row knows of"

    def test_a_study_that_is_deleted_meanwhile(self, manager: StudyManager, monkeypatch: pytest.MonkeyPatch) -> None:
        create(manager, make_spec(9))
        save = Attachments.save

        def deleted(self: Attachments, artifact_id: str, content: bytes) -> None:
            manager.delete("fleet")
            save(self, artifact_id, content)

        monkeypatch.setattr(Attachments, "save", deleted)
        with pytest.raises(StudyNotFoundError, match="was deleted meanwhile"):
            manager.attach("fleet", "report", "fleet.html", b"new")
        assert files(manager) == {}

    def test_what_is_missing_is_said_so(self, manager: StudyManager, tmp_path: Path) -> None:
        create(manager, make_spec(9))
        identity = manager.attach("fleet", "report", "fleet.html", b"old")
        (Path(manager.attachments.root) / identity).unlink()
        for name in (identity, "../tuner.db", "", json.dumps([])):
            with pytest.raises(ArtifactNotFound):
                manager.attachments.open_reader(name)
        manager.attach("fleet", "report", "fleet.html", b"new")
        assert list(files(manager).values()) == [b"new"]
        remote = Attachments(f"memory://{tmp_path.name}")
        remote.save(identity, b"far")
        with remote.open_reader(identity) as content:
            assert content.read() == b"far"
        remote.remove(identity)
        with pytest.raises(ArtifactNotFound):
            remote.open_reader(identity)
