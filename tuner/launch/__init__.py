"""Launch: starting workers, here or elsewhere. Every launcher starts ``tuner worker`` and leaves the rest to it."""
