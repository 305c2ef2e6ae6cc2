"""One error tree. A message says the rule, the fact and the fix; the command line turns a class into an exit code."""


class TunerError(Exception):
    """Anything Tuner refuses or cannot do. Ends a command with exit code 1 unless a subclass says otherwise."""

    exit_code = 1


class BadInputError(TunerError, ValueError):
    """A study file, data file, option or name that cannot be used as given. Exit code 2."""

    exit_code = 2


class SpecError(BadInputError):
    """A study file breaks one or more rules; ``problems`` holds one line for each, all found at once."""

    def __init__(self, problems: list[str], *, source: str = "study") -> None:
        self.problems = problems
        self.source = source
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{source}: {count}", *(f"  {line}" for line in problems)]))


class DataError(BadInputError):
    """A data source that cannot be read, or rows that cannot be trained on."""


class SpecMismatchError(BadInputError):
    """A study of this name exists with another spec; ``differences`` lists ``key: stored -> given`` lines."""

    def __init__(self, name: str, differences: list[str]) -> None:
        self.differences = differences
        super().__init__(
            "\n".join(
                [
                    f"study {name!r} exists with another spec; use another name, or: tuner delete {name}",
                    *(f"  {line}" for line in differences),
                ]
            )
        )


class WorkerRefusedError(BadInputError):
    """This Tuner would not train the study as it was created: another version, or another reading of its spec."""


class StudyNotFoundError(BadInputError, LookupError):
    """No study of this name in the storage."""


class StorageError(TunerError, OSError):
    """The database or the artifact folder cannot be used: unreachable, locked, read-only, full, or not ours."""


class NothingCompletedError(TunerError):
    """The study ended, and no trial completed: there is no winner to report. Exit code 3."""

    exit_code = 3


class EngineError(TunerError):
    """The engine that is to start workers is not installed, cannot be reached, or refuses them."""


class DeviceError(BadInputError):
    """The device asked for does not exist on this machine, or cannot do what was asked."""


class DeviceLostError(TunerError):
    """A device does not compute any more; only a new process can use it again, if any."""
