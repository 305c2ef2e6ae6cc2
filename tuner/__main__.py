"""``python -m tuner``: the command line."""

import sys

if __name__ == "__main__":
    try:
        from tuner.cli import main
    except KeyboardInterrupt:  # before the command line is there to say so
        sys.exit(130)
    main(prog_name="tuner")
