"""Tracking: the trials of a study in MLflow and TensorBoard, for those who look at their experiments there."""
