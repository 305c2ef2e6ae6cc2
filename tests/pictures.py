"""The pictures of the README, from a real run: the live view on a terminal, and the report in a browser.

python -m tests.pictures
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.browser import browser_page
from tests.cli.command import ROOT
from tests.cli.terminal import Terminal

FOLDER = ROOT / "docs"
COLUMNS, LINES = 100, 20
HALF_DONE = 45  # per cent from which on the live view is worth a picture


def main() -> None:
    """Write docs/live.svg and docs/report.png."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with Terminal("run", ROOT / "studies" / "digits.toml", columns=COLUMNS, lines=LINES) as terminal:
            terminal.wait_until(lambda shown: _share(shown) >= HALF_DONE)
            svg = _picture(terminal, "tuner run studies/digits.toml")
            code, shown = terminal.finish()
        assert code == 0, shown
        (FOLDER / "live.svg").write_text(svg)
        with Terminal("report", "digits") as terminal:
            assert terminal.finish()[0] == 0
        with browser_page(viewport={"width": 1000, "height": 1500}, device_scale_factor=0.8) as page:
            page.goto(Path("digits.html").absolute().as_uri())
            page.locator("#timeline .main-svg").first.wait_for()
            top = page.locator("figure", has=page.locator("#curves")).bounding_box()["y"] - 20
            clip = {"x": 0, "y": top, "width": 1000, "height": 1080}
            page.screenshot(path=str(FOLDER / "report.png"), full_page=True, clip=clip)
    for picture in sorted(FOLDER.iterdir()):
        print(f"{os.path.relpath(picture)}: {picture.stat().st_size / 1000:.0f} kB")


def _share(shown: str) -> int:
    """How much of the study is done, by the live view; 0 before there is one."""
    found = re.search(r"(\d+) %", shown)
    return int(found[1]) if found and "best error" in shown else 0


def _picture(terminal: Terminal, title: str) -> str:
    """The screen as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in terminal.styled():
        console.print(Text.assemble(*line), no_wrap=True, crop=True)
    return console.export_svg(title=title)


if __name__ == "__main__":
    main()
