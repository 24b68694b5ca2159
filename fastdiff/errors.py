"""The exception for bad input, whose message says what to give instead."""


class FastdiffError(ValueError):
    """Bad input from the user: one sentence with what was given and what is accepted.

    The command line prints it on one line and exits with code 2. What cannot be printed, such as a line break in a
    file's name, is escaped.
    """

    def __init__(self, message: str = "") -> None:
        shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
        super().__init__("".join(shown))


def reason(error: BaseException) -> str:
    """The message of another library's exception, as one short line."""
    told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__
