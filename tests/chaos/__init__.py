"""Chaos: pretending workers on a real database, faults injected at random, and a checker of what Tuner promises."""
