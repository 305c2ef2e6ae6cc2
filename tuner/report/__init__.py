"""Report: what a study found, in words. Pure functions from records to text; nothing here reads a database."""
