"""Corruption: data spoiled on purpose, to see what a network does where there is nothing to learn (lecture, slide "DNNs
Can Fit Random Labels and Random Data"; Zhang et al., "Understanding deep learning requires rethinking generalization",
ICLR 2017).

- ``random_labels``: each label that is trained on, with probability ``fraction``, becomes a class drawn uniformly,
  which may be its own; of numbers those chosen are dealt anew among themselves. Rows that are held out keep their true
  labels, so the error on them says what was learnt about the world: chance, where all labels are random. With folds
  every row that is not a test row is trained on in some fold, so all of their labels are spoiled.
- ``shuffled_pixels``: one permutation of the feature columns, the same for every row.
- ``random_pixels``: another permutation of the features in each row.
- ``gaussian_inputs``: each feature is normal noise of its column's mean and variance.

What touches inputs touches every row, train, validation and test, as it does in the paper: the world is spoiled, not
the sample.

Shapes: ``n`` rows, ``D`` feature columns.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import polars as pl

from tuner.data.sources import Table
from tuner.errors import DataError
from tuner.spec import CorruptSection
from tuner.words import count


def corrupted(table: Table, section: CorruptSection, *, trained: npt.NDArray[np.int64]) -> Table:
    """The table after its corruption, the same for equal tables and sections. ``trained``: rows whose labels are.

    Raises DataError where values are to move between columns that are not all numbers.
    """
    rng = np.random.default_rng([section.seed, 0xC0])
    if section.kind == "random_labels":
        return replace(table, target=_random_labels(table, _fraction(section), trained, rng))
    return replace(table, frame=_spoiled(table.frame, section, rng))


def told(section: CorruptSection, table: Table, trained: int) -> str:
    """What was done, in one line."""
    if section.kind != "random_labels":
        done = {
            "shuffled_pixels": "one permutation of the columns",
            "random_pixels": "another permutation of the columns in each row",
            "gaussian_inputs": "normal noise instead of every feature",
        }
        return f"corrupted on purpose: {done[section.kind]}, in all {count(len(table.target), 'row')}"
    share = f"{100 * _fraction(section):g} % of the labels of {count(trained, 'row')} that are trained on"
    return f"corrupted on purpose: {share} are random; held-out rows keep theirs"


def _fraction(section: CorruptSection) -> float:
    return 1.0 if section.fraction is None else section.fraction


def _random_labels(
    table: Table, fraction: float, trained: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.int64] | npt.NDArray[np.float64]:
    """One number a row of the table says whether its label is spoiled, so a larger fraction spoils more of the same."""
    n = len(table.target)
    spoiled = trained[rng.random(n)[trained] < fraction]
    target = table.target.copy()
    if table.classes:
        target[spoiled] = rng.integers(0, len(table.classes), n)[spoiled]
    else:
        target[spoiled] = table.target[rng.permutation(spoiled)]
    return target


def _spoiled(frame: pl.DataFrame, section: CorruptSection, rng: np.random.Generator) -> pl.DataFrame:
    """The features as Float64, NaN where a value is missing."""
    for column in frame:
        if not column.dtype.is_numeric():
            raise DataError(
                f"data.corrupt: {section.kind} is for numbers; column {column.name!r} holds {column.dtype}: list it in "
                "data.drop, or use random_labels"
            )
    x = np.column_stack([column.cast(pl.Float64).fill_null(np.nan).to_numpy() for column in frame])
    if section.kind == "shuffled_pixels":
        x = x[:, rng.permutation(x.shape[1])]
    elif section.kind == "random_pixels":
        x = rng.permuted(x, axis=1)
    else:
        mean, sd = ([getattr(column, of)() for column in frame] for of in ("mean", "std"))
        x = np.array(mean, dtype=np.float64) + np.array(sd, dtype=np.float64) * rng.standard_normal(x.shape)
    return pl.DataFrame({name: pl.Series(x[:, i]).fill_nan(None) for i, name in enumerate(frame.columns)})
