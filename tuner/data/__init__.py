"""Data: sources, splits, preprocessing. Numerics: never imports optuna, sqlalchemy or click.

The sealed test rows are not here: see :mod:`tuner.data.sealed`.
"""

from tuner.data.columns import Column, Schema
from tuner.data.dataset import (
    DataSummary,
    FinalData,
    Rows,
    TrainingData,
    View,
    load_final_data,
    load_training_data,
    summarize,
)
from tuner.data.preprocessing import Preprocessing
from tuner.data.sources import MIN_ROWS, Table, load_table
from tuner.data.splits import Split, default_fractions, is_stratified, part_sizes, split_rows

__all__ = [
    "MIN_ROWS",
    "Column",
    "DataSummary",
    "FinalData",
    "Preprocessing",
    "Rows",
    "Schema",
    "Split",
    "Table",
    "TrainingData",
    "View",
    "default_fractions",
    "is_stratified",
    "load_final_data",
    "load_table",
    "load_training_data",
    "part_sizes",
    "split_rows",
    "summarize",
]
