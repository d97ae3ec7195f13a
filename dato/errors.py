"""The one exception that means "the input is wrong", as against "there is a bug"."""


class DatoError(ValueError):
    """Bad input: the message is one line that says what is wrong and what to do about it.

    The command lines print it and leave with exit code 2; any other exception keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """What a library's exception says, cut to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
