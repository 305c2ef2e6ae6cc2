"""Search: who proposes configurations and who survives a rung. Coordination: never imports torch."""
