"""The exceptions whose message a command prints instead of a traceback."""


class InputError(ValueError):
    """Bad input: one sentence that names the value or file and the remedy.

    Commands print the sentence and exit with status 2; in Python it is an ordinary `ValueError`.
    """


class TrainingStopped(RuntimeError):
    """Training cannot continue; the message says where it stopped and what to try. The last checkpoint is kept.

    Commands exit with status 1.
    """


class Interrupted(KeyboardInterrupt):
    """The user or the system asked to stop, by `signal`; the state is saved and the run can be resumed.

    Commands exit with status 128 + signal: 130 after Ctrl-C.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.signal = signal


def first_line(error: BaseException) -> str:
    """A library's error message for a sentence of ours: its first line, at most 300 characters, or else its type."""
    return (str(error).strip().partition("\n")[0][:300] or type(error).__name__).rstrip(".")
