"""What every test relies on: no setting of the caller's reaches it, and it can be repeated."""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# A shell ignores Ctrl-C for what it starts in the background, and whatever that starts inherits it: tests that press it
# would wait for ever.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What these modules assert is told as fully as what the tests themselves do.
pytest.register_assert_rewrite(
    *(f"tests.{path.stem}" for path in Path(__file__).parent.iterdir() if f"tests.{path.stem}" not in sys.modules)
)

hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")

for name in ("TUNER_STORAGE", "OPTUNA_STORAGE", "TUNER_ARTIFACTS", "TUNER_DATA_ROOT"):
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first: the process that began it last would work alone at the end."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.fixture(autouse=True)
def _torch_as_it_starts() -> None:
    """One thread, since test processes share few cores; and denormal numbers, which a worker in an earlier test may
    have turned off for the whole process. A test that never imports torch does not here.
    """
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
        torch.set_flush_denormal(False)


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory beside an empty HOME, plain output 120 columns wide: for tests of the command line."""
    home, here = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    for name in [*(n for n in os.environ if n.startswith("XDG_")), "FORCE_COLOR"]:
        monkeypatch.delenv(name, raising=False)
    return here
