"""What a study carries with it, to be downloaded in the dashboard: its report, its figures, its exported model."""

from __future__ import annotations

import io
import logging
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import plotly.io

from tuner.errors import StorageError
from tuner.report.html import file_stem

if TYPE_CHECKING:
    from tuner.drawing import Figure
    from tuner.manager import StudyManager

_SAME_DATE = (1980, 1, 1, 0, 0, 0)  # of every file in an archive: equal contents make equal archives

_log = logging.getLogger(__name__)


def attach_report(manager: StudyManager, name: str, page: str, drawn: Sequence[Figure]) -> None:
    """Let the study carry its report, and the data of its figures in an archive: ``plotly.io.read_json`` reads each.

    Where they cannot be stored, a line of the log says why, and the study is as it was.
    """
    stem = file_stem(name)
    files = ((f"{stem}-figures/{figure.name}.json", _json(figure)) for figure in drawn)
    if _attach(manager, name, "report", f"{stem}-report.html", page.encode()) and drawn:
        _attach(manager, name, "figures", f"{stem}-figures.zip", archive(files))


def attach_model(manager: StudyManager, name: str, folder: Path) -> None:
    """Let the study carry an exported model: its folder in an archive. As :func:`attach_report`."""
    stem = f"{file_stem(name)}-model"
    files = ((f"{stem}/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir()))
    _attach(manager, name, "model", f"{stem}.zip", archive(files))


def archive(files: Iterable[tuple[str, bytes]]) -> bytes:
    """A ZIP archive of files, each a name and its content.

    >>> zipfile.ZipFile(io.BytesIO(archive([("a/b.txt", b"c")]))).namelist()
    ['a/b.txt']
    """
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as into:
        for name, data in files:
            entry = zipfile.ZipInfo(name, _SAME_DATE)
            entry.external_attr = 0o644 << 16
            into.writestr(entry, data, zipfile.ZIP_DEFLATED)
    return content.getvalue()


def _attach(manager: StudyManager, name: str, kind: str, file_name: str, content: bytes) -> bool:
    """Whether it worked."""
    try:
        manager.attach(name, kind, file_name, content)
    except StorageError as error:
        _log.warning("%s: the dashboard will not have its %s: %s", name, kind, error)
        return False
    return True


def _json(figure: Figure) -> bytes:
    text: str = plotly.io.to_json(figure.drawing, validate=False)
    return text.encode()
