"""Files that appear whole or not at all."""

import os
from pathlib import Path

import pytest

from tuner.files import umask, whole_file


@pytest.mark.parametrize("there", [False, True])
def test_after_an_error_all_is_as_before(there: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    if there:
        path.write_text("before")

    def fail_in_the_middle() -> None:
        with whole_file(path) as file:
            file.write(b"half")
            file.flush()
            assert path.exists() == there, "nothing shows before the end"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_in_the_middle()
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("a.txt", "before")] * there


def test_it_is_for_whoever_may_read_what_this_process_writes(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a.txt") as file:
            file.write(b"whole")
        assert umask() == 0o027
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_links_and_devices_stay_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "a.txt")
    with whole_file(tmp_path / "link") as file:
        file.write(b"through")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "far" / "a.txt").read_text() == "through"
    (tmp_path / "device").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"), whole_file(tmp_path / "device") as file:
        file.write(b"lost")
    assert Path("/dev/full").is_char_device()
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "far"):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "device", "far", "link"]
