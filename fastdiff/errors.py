"""The exception for bad input, whose message says what to give instead, and words for such messages."""

from collections.abc import Iterable


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


def nearest(word: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> str:
    """``" (did you mean <the most similar>?)"``, with ``most`` names at most, or nothing if none is similar.

    Args:
        cutoff: similarity of the least similar one, from 0 (any) to 1 (equal).
    """
    from difflib import get_close_matches

    found = get_close_matches(word, list(known), most, cutoff)
    return f" (did you mean {', '.join(found)}?)" if found else ""
