"""Learning: the plain MLP (the specification) and the fused lanes. Numerics: never imports optuna, sqlalchemy or click."""
