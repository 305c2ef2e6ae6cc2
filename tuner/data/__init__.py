"""Data: sources, splits, preprocessing. Numerics: never imports optuna, sqlalchemy or click."""
