"""Progress: a live view on a real terminal that leaves nothing behind, plain lines elsewhere."""

import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from tests.cli.command import DEADLINE_S, ROOT, TINY, tuner, tuner_json, wait_until, write_study
from tests.cli.terminal import Terminal
from tuner.cli.progress import Plain, Watch
from tuner.manager import StudyManager
from tuner.report.standing import RungStanding, progress_bar, sparkline, standing
from tuner.search import Bracket, Rung
from tuner.storage.overview import PlaceRow

pytestmark = pytest.mark.usefixtures("workdir")

LONG = (
    TINY.replace("sklearn:iris", "sklearn:digits")
    .replace('pruner = "none"', 'pruner = "hyperband"')
    .replace("trials = 3", "trials = 400")
    .replace("max_epochs = 4", "max_epochs = 27")
    .replace("batch_size = 32", "batch_size = 4")
)


def test_a_run_on_a_terminal() -> None:
    study = write_study(TINY.replace("max_epochs = 4", "max_epochs = 300"))
    with Terminal("run", study, "--workers", "1", "--device", "cpu") as terminal:
        code, shown = terminal.finish()
    assert code == 0, shown
    assert shown.startswith("tiny: 3 of 3 trials done"), "the view is gone, the summary is there"
    assert "in flight" not in shown
    assert "test error" in shown
    assert not terminal.cursor_hidden
    assert b"in flight" in terminal.raw


def test_a_note_stays_above_the_view() -> None:
    study = write_study(TINY.replace("batch_size = 32", "batch_size = 128"))
    with Terminal("run", study, "--workers", "1", "--device", "cpu") as terminal:
        code, shown = terminal.finish()
    assert code == 0, shown
    note, summary = shown.splitlines()[:2]
    assert note == "tiny: advice: space.batch_size: above 90 training rows a batch is the whole training set"
    assert summary.startswith("tiny: 3 of 3 trials done")


def test_brackets_fill_and_ctrl_c_leaves_a_clean_screen() -> None:
    with Terminal("run", write_study(LONG), "--workers", "1", "--device", "cpu") as terminal:
        view = terminal.wait_until(lambda shown: "in flight" in shown and "bracket" in shown)
        assert "tiny  random sampler, hyperband pruner" in view
        (header,) = [line for line in view.splitlines() if line.startswith("bracket")]
        assert header.split() == ["bracket", "1", "epoch", "3", "epochs", "9", "epochs", "27", "epochs"]
        rows = [line for line in view.splitlines() if "/" in line and line[:1].isdigit()]
        assert [row[0] for row in rows] == ["3", "2", "1", "0"]
        assert "of 400 trials" in view
        for columns, lines in ((60, 20), (100, 12), (140, 40)):
            terminal.resize(columns, lines)
            terminal.wait_until(lambda shown: "in flight" in shown)
        assert terminal.cursor_hidden
        terminal.press_ctrl_c()
        code, shown = terminal.finish()
    assert code == 130, shown
    assert "of 400 trials are over and everything is saved; the same command goes on from here" in shown
    assert "in flight" not in shown.splitlines()[-1]
    assert not terminal.cursor_hidden
    assert tuner_json("show", "tiny")["trials"]["running"] == 0


SAID = "tiny  random sampler, hyperband pruner"


def one_view(screen: list[str], columns: int) -> bool:
    """Whether a screen has the live view once, and as wide as it may be: what an older one left would stay for good."""
    text = "\n".join(screen)
    return (text.count(SAID), text.count("in flight")) == (1, 1) and all(len(line) < columns for line in screen)


def test_resizing_in_mid_run_leaves_one_view() -> None:
    with Terminal("run", write_study(LONG), "--workers", "1", "--device", "cpu") as terminal:
        terminal.wait_until(lambda shown: SAID in shown)
        for columns, lines in ((60, 24), (40, 10), (120, 40), (100, 30)):
            terminal.resize(columns, lines)
            terminal.wait_until(lambda _, columns=columns: one_view(terminal.screen(), columns))
        # Nothing flickers: the screen is never cleared as a whole.
        assert b"\x1b[2J" not in terminal.raw
        terminal.press_ctrl_c()
        code, shown = terminal.finish()
    assert (code, SAID in "\n".join(shown.splitlines()[-3:]), terminal.cursor_hidden) == (130, False, False)


def test_a_terminal_that_wraps_what_is_there_when_it_is_made_narrower() -> None:
    """tmux does, as most do; a picture that was drawn wide takes more rows then, and all of them must go."""
    if shutil.which("tmux") is None:
        assert not os.environ.get("CI"), "tmux is not there: apt-get install tmux"
        pytest.skip("no tmux")
    socket = f"tuner-{os.getpid()}"

    def tmux(*words: str) -> str:
        command = ["tmux", "-L", socket, "-f", "/dev/null", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=DEADLINE_S).stdout

    def shown() -> str:
        time.sleep(1.0)  # tmux tells its programs of a new size once nobody has asked it anything for a moment
        return tmux("capture-pane", "-p", "-t", "0")

    longer = write_study(LONG.replace("trials = 400", "trials = 8000"))
    tuner("create", longer)  # says the notes on its columns, which would stand above the view
    run = f"env -u COLUMNS PYTHONPATH={ROOT} {sys.executable} -m tuner run {longer} --workers 1"
    tmux("new-session", "-d", "-x", "110", "-y", "40", f"seq 101 118; {run}; read wait")
    try:
        wait_until(lambda: "in flight" in shown())
        tmux("resize-window", "-x", "60", "-y", "40")
        wait_until(lambda: one_view(shown().splitlines(), 60))
        view = shown()
        assert "118\ntiny  random" in view, f"nor is anything lost that was there before:\n{view}"
        tmux("send-keys", "C-c")
        wait_until(lambda: "the same command goes on from here" in " ".join(shown().split()))
        assert "in flight" not in shown()
    finally:
        tmux("kill-server")


def test_a_worker_on_a_terminal() -> None:
    tuner("create", write_study(LONG))
    with Terminal("worker", "tiny", "--device", "cpu", columns=70, lines=24) as terminal:
        view = terminal.wait_until(lambda shown: "1 worker," in shown and "in flight" in shown)
        assert max(map(len, view.splitlines())) <= 70
        terminal.press_ctrl_c()
        code, shown = terminal.finish()
    assert (code, "in flight" in shown, terminal.cursor_hidden) == (130, False, False)


def test_quiet_is_quiet() -> None:
    tuner("create", write_study())
    with Terminal("worker", "tiny", "--device", "cpu", "--quiet") as terminal:
        assert terminal.finish() == (0, "")
    assert terminal.raw == b""


def test_off_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    tuner("create", write_study())
    err = tuner("worker", "tiny", "--device", "cpu").stderr
    assert (err.splitlines()[0], err.splitlines()[-1]) == ("tiny: joining, on cpu", "tiny: finished")
    assert "\x1b" not in err
    with StudyManager("sqlite:///tuner.db") as manager:
        watch, view, stop = Watch(manager, "tiny"), Plain(), threading.Event()
        said = ""

        def seen(text: str) -> bool:
            nonlocal said
            said += capsys.readouterr().err
            return text in said

        with watch.shown_in(view, stop, "leaving"):
            wait_until(lambda: seen("of 12 epochs, 3 complete, 0 pruned of 3 trials"))
            stop.set()
            wait_until(lambda: seen("leaving"))
    assert said.startswith("tiny: ")
    assert len(said.splitlines()) == 2, "a line every few seconds, not at every look"


# The parts

DEALT = (
    Bracket(index=1, rungs=(Rung(size=3, epochs=1), Rung(size=1, epochs=3))),
    Bracket(index=0, rungs=(Rung(size=2, epochs=3),)),
    Bracket(index=1, rungs=(Rung(size=3, epochs=1), Rung(size=1, epochs=3))),
)


def place(bracket: int, rung: int, state: str, slots: int, running: int = 0) -> PlaceRow:
    return PlaceRow(bracket=bracket, rung=rung, state=state, slots=slots, running=running)  # type: ignore[arg-type]


def test_standing_adds_up_brackets_of_a_kind() -> None:
    places = [
        place(0, 0, "pruned", 2),
        place(0, 1, "leased", 1, 1),
        place(1, 0, "complete", 1),
        place(1, 0, "leased", 1),  # its worker is gone
        place(2, 0, "waiting", 3),
    ]
    first = RungStanding(bracket=1, epochs=1, planned=6, done=3, running=0)
    second = RungStanding(bracket=1, epochs=3, planned=2, done=0, running=1)
    last = RungStanding(bracket=0, epochs=3, planned=2, done=1, running=0)
    assert standing(DEALT, places) == [first, second, last]
    begun = standing(DEALT, places, begun_only=True)
    assert [rung.planned for rung in begun] == [3, 1, 2]
    assert standing(DEALT, []) == []


def test_bars_and_sparklines_of_nothing_much() -> None:
    assert sparkline([float("nan"), None], 5) == "  "
    assert sparkline([1.0], 5) == "▁"
    assert len(sparkline([float(i) for i in range(1000)], 13)) == 13
    assert progress_bar(0, 0, 0, 3) == "···"
    assert progress_bar(100, 1, 1, 2) == "█▒"
    assert progress_bar(5, 1, 1, 0) == ""
