"""Storage: one study in one SQL database, shared by any number of workers. Coordination: never imports torch."""
