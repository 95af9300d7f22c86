"""The exceptions whose message a command prints instead of a traceback, and how such a message quotes what it found."""


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
    return (plain_text(str(error).strip().partition("\n")[0], 300) or type(error).__name__).rstrip(".")


def shown(value: object, limit: int = 80) -> str:
    """`value` as a message quotes it: its `repr`, with what a terminal would act on escaped, and its middle cut out.

    Args:
        value: a name or number from a file or a command line.
        limit: most characters of the result.
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a container within itself
        text = f"a value of type {type(value).__name__}"
    return plain_text(text, limit)


def plain_text(text: str, limit: int) -> str:
    """`text` on one line without control characters, which are written as escapes, cut to `limit` characters."""
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if len(text) <= limit:
        return text
    end = limit // 3
    return f"{text[: limit - end - 3]}...{text[len(text) - end :]}"
