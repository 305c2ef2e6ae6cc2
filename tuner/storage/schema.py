"""Tuner's own tables, which stand beside Optuna's in the same database and hold what Optuna does not promise.

No table has a foreign key: a bulk insert would pay for every row of it, and locks on the study's row would meet. Every
table carries ``study_id``, and :meth:`tuner.manager.StudyManager.delete` removes by it. Times are seconds since the
epoch in UTC by the database's clock; a double that is NULL was NaN or infinite (``value_type`` says which).
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Boolean, Column, Double, Index, Integer, MetaData, String, Table, Text, false
from sqlalchemy.dialects import mysql

SCHEMA_VERSION = 2

State = Literal["waiting", "leased", "paused", "complete", "pruned", "failed"]
UNFINISHED: tuple[State, ...] = ("waiting", "leased", "paused")

metadata = MetaData()

# MySQL's TEXT ends at 64 kB; a spec with long lists of choices may be longer.
_LongText = Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
# MySQL's usual collations call "Digits" and "digits" the same name.
_Name = String(200).with_variant(mysql.VARCHAR(200, charset="utf8mb4", collation="utf8mb4_bin"), "mysql")


def _table(name: str, *columns: Column[object] | Index, **options: Any) -> Table:
    return Table(name, metadata, *columns, mysql_engine="InnoDB", mysql_charset="utf8mb4", **options)


schema_versions = _table("tuner_schema", Column("version", Integer, primary_key=True, autoincrement=False))

studies = _table(
    "tuner_studies",
    Column("study_id", Integer, primary_key=True, autoincrement=False),  # Optuna's
    Column("name", _Name, nullable=False, unique=True),
    Column("spec", _LongText, nullable=False),  # canonical JSON
    Column("spec_digest", String(64), nullable=False),
    Column("data_root", Text, nullable=False),
    Column("data_digest", String(128), nullable=False),
    Column("split_digest", String(128), nullable=False),
    Column("folder", String(160), nullable=False),  # of the checkpoints, under the artifacts' root
    Column("stopped", Boolean, nullable=False),
    Column("results", Integer, nullable=False, server_default="0"),  # asha: how many rung results there are
    Column("tuner_version", String(64), nullable=False),
    Column("created_at", Double, nullable=False),
)

# One row for each of the N trials, inserted when the study is created. Server defaults let a bulk upsert name only
# the columns that it changes.
slots = _table(
    "tuner_slots",
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),  # Optuna's trial number
    Column("bracket", Integer, nullable=False, server_default="0"),  # ordinal in the deal, not Hyperband's s
    Column("rung", Integer, nullable=False, server_default="0"),
    Column("target", Integer, nullable=False, server_default="0"),  # epochs at which the rung is decided: its r_i
    Column("state", String(16), nullable=False, server_default="waiting"),
    Column("trial_id", Integer),  # Optuna's, once drawn
    Column("params", Text),  # JSON of every hyperparameter, once drawn
    Column("epochs", Integer, nullable=False, server_default="0"),  # safely trained: what the checkpoint holds
    Column("seconds", Double, nullable=False, server_default="0"),
    Column("value", Double),
    Column("value_type", String(8)),  # a name of Optuna's TrialIntermediateValueType
    Column("reason", Text),
    Column("worker_id", Integer),  # who holds the lease, or held it last
    Column("claim", String(32)),  # one key a claim() call, to read back a commit whose answer was lost
    Column("token", Integer, nullable=False, server_default="0"),  # fencing: grows with every lease
    Column("lease_s", Double, nullable=False, server_default="0"),
    Column("lease_until", Double),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("checkpoint_id", Integer),
    Index("ix_tuner_slots_claim", "study_id", "state", "rung", "bracket", "number"),
    Index("ix_tuner_slots_rung", "study_id", "bracket", "rung", "state"),
    Index("ix_tuner_slots_worker", "study_id", "worker_id", "state"),
    Index("ix_tuner_slots_checkpoint", "study_id", "checkpoint_id"),
)

rungs = _table(
    "tuner_rungs",
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("rung", Integer, primary_key=True, autoincrement=False),
    Column("epochs", Integer, nullable=False),
    Column("value", Double),
    Column("token", Integer, nullable=False),  # of the lease that brought the result
    Column("position", Integer),  # asha: the order in which the study's results were committed, from 1
    Index("ix_tuner_rungs_position", "study_id", "position"),
)

# The validation metric of each epoch is in Optuna's trial_intermediate_values, where its dashboard looks.
curves = _table(
    "tuner_curves",
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("epoch", Integer, primary_key=True, autoincrement=False),
    Column("train_loss", Double),
    Column("val_loss", Double),
)

checkpoints = _table(
    "tuner_checkpoints",
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, nullable=False, index=True),
    Column("path", String(255), nullable=False),  # relative to the study's folder
    Column("sha256", String(64), nullable=False),
    Column("bytes", Double, nullable=False),  # a double counts past 2 GiB on every database
)

workers = _table(
    "tuner_workers",
    Column("id", Integer, primary_key=True),
    Column("study_id", Integer, nullable=False, index=True),
    Column("session", String(32), nullable=False, unique=True),  # reads back a registration whose answer was lost
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", String(255), nullable=False),
    Column("version", String(64), nullable=False),
    Column("started_at", Double, nullable=False),
    Column("heartbeat_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("lost", Boolean, nullable=False, server_default=false()),  # its launcher saw that it died
    Column("lanes", Integer, nullable=False),
    Column("epochs_per_s", Double, nullable=False),
    sqlite_autoincrement=True,  # else the id of a deleted worker comes again, which may live and show its old leases
)

# The sealed-test ledger: the first opening's result, and how often it was looked at again.
evaluations = _table(
    "tuner_evaluations",
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("content", _LongText, nullable=False),  # JSON
    Column("peeks", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
)

# SQLite gathers no statistics by itself, and without any it takes a study for ten rows: it walks through every slot of
# a large study to save itself the sorting of a few. These say what a large study looks like: (table, index) -> rows in
# all, then rows for each value of the first column, of the first two, and so on. The servers gather their own.
SQLITE_STATISTICS = {
    ("tuner_slots", "sqlite_autoindex_tuner_slots_1"): "100000 100000 1",
    ("tuner_slots", "ix_tuner_slots_claim"): "100000 100000 500 300 20 1",
    ("tuner_slots", "ix_tuner_slots_rung"): "100000 100000 50 30 20",
    ("tuner_slots", "ix_tuner_slots_worker"): "100000 100000 2000 50",
    ("tuner_slots", "ix_tuner_slots_checkpoint"): "100000 100000 50",
    ("tuner_rungs", "sqlite_autoindex_tuner_rungs_1"): "150000 150000 2 1",
    ("tuner_rungs", "ix_tuner_rungs_position"): "150000 150000 1",
    ("tuner_curves", "sqlite_autoindex_tuner_curves_1"): "2000000 2000000 20 1",
    ("tuner_checkpoints", "ix_tuner_checkpoints_study_id"): "50 50",
}
