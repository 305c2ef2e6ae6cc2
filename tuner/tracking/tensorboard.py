"""TensorBoard: a folder with a file of events for each trial, moved into place as a whole."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from tuner.errors import StorageError
from tuner.manager import TrialHistory
from tuner.tracking.tracker import timed

_UNFINISHED = ".unfinished-"


class TensorBoardTracker:
    """The trials of one study in a folder of its own: ``trial-00007-complete`` and so on.

    Each has its curves as scalars, its hyperparameters and its value for the HParams tab, and its attributes as text.
    """

    title = "TensorBoard"

    def __init__(self, folder: Path, metric: str) -> None:
        self._folder, self._metric = folder, metric
        with self._explained():
            folder.mkdir(parents=True, exist_ok=True)

    def known(self) -> Mapping[int, str]:
        """See :class:`tuner.tracking.tracker.Tracker`."""
        states = {}
        with self._explained():
            for entry in self._folder.iterdir():
                if entry.name.startswith(_UNFINISHED):
                    shutil.rmtree(entry, ignore_errors=True)
                elif found := re.fullmatch(r"trial-(\d+)-([a-z]+)", entry.name):
                    states[int(found[1])] = found[2]
        return states

    def log(self, history: TrialHistory) -> None:
        """See :class:`tuner.tracking.tracker.Tracker`."""
        trial = history.trial
        place = self._folder / f"trial-{trial.number:05}-{trial.state}"
        with self._explained():
            unfinished = self._folder / f"{_UNFINISHED}{uuid.uuid4().hex}"
            unfinished.mkdir()
            try:
                self._write(unfinished, history)
                for before in self._folder.glob(f"trial-{trial.number:05}-*"):
                    shutil.rmtree(before)
                unfinished.rename(place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)

    def _write(self, folder: Path, history: TrialHistory) -> None:
        trial = history.trial
        with SummaryWriter(str(folder)) as writer:
            for point, at in timed(history):
                numbers = {self._metric: point.value, "train_loss": point.train_loss, "val_loss": point.val_loss}
                for tag, value in numbers.items():
                    if value is not None:
                        writer.add_scalar(tag, value, point.epoch, walltime=at)
            judged = {} if trial.value is None else {"value": trial.value}
            for summary in hparams(trial.params or {}, judged):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary, walltime=history.ended_at)
            for tag, value in judged.items():
                writer.add_scalar(tag, value, trial.epochs, walltime=history.ended_at)
            lines = ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in history.attributes.items())]
            writer.add_text("trial", "\n".join(lines), trial.epochs, walltime=history.ended_at)

    def describe(self, text: str) -> None:
        """See :class:`tuner.tracking.tracker.Tracker`. TensorBoard shows the text of a run, so it is one's own."""
        with self._explained():
            shutil.rmtree(self._folder / "study", ignore_errors=True)
            with SummaryWriter(str(self._folder / "study")) as writer:
                writer.add_text("study", text)

    def close(self) -> None:
        """Nothing is open between two calls."""

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            told = error.strerror or error
            raise StorageError(
                f"TensorBoard at {self._folder}: cannot be written: {told}; see [log] tensorboard"
            ) from error
