"""The exception for wrong input. Every other exception is a bug."""


class DatoError(ValueError):
    """Bad input: the message is one line that says what is wrong and what to do about it.

    Names of Python's arguments are in backticks, for example `pop_size`. The command line writes them as its flags, for
    example --pop-size. It prints the message and exits with code 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's exception says, cut to one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def reason_of(error: BaseException) -> str:
    """What a library's exception says on one line, with its type if the text alone says little ("'unet'")."""
    line = first_line(error).rstrip(":")
    return line if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: {line}"
