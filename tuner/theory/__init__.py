"""Theory: what the lecture's first part says of a learned network, as numbers. Numerics: never imports optuna,
sqlalchemy or click.

Functions of arrays and of trained lanes; what is shown of it, and of which study, is :mod:`tuner.demonstrations`' part.
"""
