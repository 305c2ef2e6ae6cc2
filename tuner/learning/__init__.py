"""Learning: the plain MLP (the specification) and the fused lanes. Numerics: no optuna, sqlalchemy, click."""
