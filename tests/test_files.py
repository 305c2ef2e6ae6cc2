"""Files that appear whole or not at all, and whose text is in one encoding everywhere."""

import ast
import os
import re
from pathlib import Path

import pytest

from tuner.files import umask, whole_file


def in_any_encoding(source: str) -> list[int]:
    """Lines that read or write text in the encoding of whoever runs them."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        given = [argument.value if isinstance(argument, ast.Constant) else None for argument in call.args]
        mode = next((word for word in given if isinstance(word, str) and re.fullmatch("[rwxabt+]+", word)), None)
        binary = mode is not None and "b" in mode
        elsewhere = mode is None and isinstance(call.func, ast.Attribute) and bool(call.args)  # os.open and the like
        text = name in ("read_text", "write_text") or (name in ("open", "fdopen") and not binary and not elsewhere)
        if text and not any(keyword.arg == "encoding" for keyword in call.keywords):
            lines.append(call.lineno)
    return lines


def test_text_is_in_one_encoding_everywhere() -> None:
    sources = Path(__file__).parents[1].glob("tuner/**/*.py")
    found = {path.name: in_any_encoding(path.read_text(encoding="utf-8")) for path in sources}
    assert len(found) > 50
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_in_any_encoding_notices() -> None:
    wrong = "p.read_text()\np.write_text(x)\nopen(p)\np.open()\np.open('a')\nos.fdopen(f, 'w')\n"
    right = "p.open('rb')\nfiles.open(name)\nos.open(p, os.O_RDONLY)\np.read_text(encoding='utf-8')\nopen(p, 'wb')\n"
    assert in_any_encoding(wrong + right) == [1, 2, 3, 4, 5, 6]


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
