"""The test suite. Folders mirror ``tuner/``; helpers are imported as ``tests.…``."""
