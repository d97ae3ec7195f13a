"""Names of files made from text."""

from __future__ import annotations

import hashlib
import os
import unicodedata

LONGEST, BYTES = 60, 120  # of a name; a file system allows 255 bytes, and a front's name and suffixes are added


def file_name(text: str) -> str:
    """Return a name in letters and digits of any language, with hyphens between the words, for a file of this text.

    Different texts have different names, apart from capitals and the spaces between words: where words alone do not
    tell a text from others, some digits of its digest follow.

    Example:
        >>> file_name("A red apple"), file_name("красное яблоко")
        ('a-red-apple', 'красное-яблоко')
        >>> file_name("A red apple!")
        'a-red-apple-e3111f24'
    """
    words = " ".join(unicodedata.normalize("NFC", text).lower().split())
    name = "".join(character if _stays(character) else "-" for character in words)
    name = "-".join(part for part in name.split("-") if part)
    short = name[:LONGEST].encode()[:BYTES].decode(errors="ignore").strip("-")
    if short.replace("-", " ") == words and short:
        return short
    digest = hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{short}-{digest}" if short else digest


def _stays(character: str) -> bool:
    """Return whether a character is a letter, a digit, or a mark on one, and this system's file names can hold it."""
    if unicodedata.category(character)[0] not in "LNM":
        return False
    try:
        os.fsencode(character)
    except UnicodeEncodeError:
        return False
    return True
