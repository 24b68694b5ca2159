"""The one exception that means: the input was wrong, and the message says what to give instead."""


class FastdiffError(ValueError):
    """Bad input from the user: one sentence with what was given and what is accepted.

    The command line prints it on one line and exits with code 2.
    """
