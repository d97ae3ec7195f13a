"""Write plain characters where an output cannot hold others: a Windows console, a file, a locale without UTF-8."""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata

NAME = "dato-plain"  # of the error handler
# What dato's own output and its libraries' consist of.
_PLAIN = {
    "█": "#",
    "·": ".",
    "★": "*",
    "•": "*",
    "±": "+-",
    "×": "x",
    "–": "-",
    "—": "-",
    "…": "...",
    "→": "->",
    "↑": "^",
    "≤": "<=",
    "≥": ">=",
    "‘": "'",
    "’": "'",
    "“": '"',
    "”": '"',
}
_BOX, _BLOCKS, _BRAILLE = range(0x2500, 0x2580), range(0x2580, 0x25A0), range(0x2800, 0x2900)
_ROWS, _COLUMNS = "─━┄┅┈┉╌╍═╴╶╸╺╼╾", "│┃┆┇┊┋╎╏║╵╷╹╻╽╿"


def use_plain_output() -> None:
    """Make standard output and standard error write plain characters instead of those that they cannot encode.

    An output for which the user chose what to do, as with PYTHONIOENCODING=ascii:replace, stays as it is.
    """
    codecs.register_error(NAME, _replaced)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace", "surrogateescape"):
            stream.reconfigure(errors=NAME)


def plain(character: str) -> str:
    """Return ASCII text for a character: "#" for a block, "e" for é, its number for what has no likeness."""
    code, (base, *marks) = ord(character), unicodedata.normalize("NFKD", character)
    if character in _PLAIN:
        return _PLAIN[character]
    if code in _BOX:
        return "-" if character in _ROWS else "|" if character in _COLUMNS else "+"
    if code in _BLOCKS or code in _BRAILLE:
        return "#" if code in _BLOCKS else "*"
    if base.isascii() and all(map(unicodedata.combining, marks)):
        return base
    return character.encode("ascii", "backslashreplace").decode()


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace the first of the characters that could not be encoded. This is an error handler of `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name that is not UTF-8, as Python holds it
        return bytes([ord(character) - 0xDC00]), error.start + 1
    return plain(character), error.start + 1
