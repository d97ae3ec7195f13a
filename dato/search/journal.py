"""A journal: an append-only file with one JSON value a line, each on the disk before it counts.

Whatever kills the writer, what was appended before is whole. At most the last line is torn, and opening the journal
again drops it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from dato.errors import DatoError
from dato.evaluation.judgement import Judgement
from dato.pruning import Pruning


class Journal:
    """An open journal. Only one process at a time has it.

    Args:
        path: The file; it is made if there is none.

    Attributes:
        entries: All values, the earlier ones first.
        torn: Whether a torn last line was dropped.

    Raises:
        DatoError: if the file cannot be written to, another process has it, or a line that is not the last one is bad.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
            self._file = self.path.open("ab")
        except Timeout:
            raise DatoError(f"{self.path.parent} is in use: another process writes its journal") from None
        except OSError as error:
            self._lock.release()
            raise DatoError(f"cannot write {self.path}: {error.strerror}; choose another place with --out") from None
        try:
            self.entries, whole = read_entries(self.path)
            self.torn = whole < self.path.stat().st_size
            if self.torn:
                self._file.truncate(whole)
        except DatoError:
            self.close()
            raise

    def append(self, entry: Any) -> None:
        """Add a value. When this returns it is on the disk.

        Raises:
            DatoError: if it cannot be written; what was written before is safe.
        """
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.close()
            raise DatoError(
                f"cannot write {self.path}: {error.strerror}; all before it is kept: make room, then --resume "
                f"{self.path.parent}"
            ) from None
        self.entries.append(entry)

    def close(self) -> None:
        """Let others have it."""
        with contextlib.suppress(OSError):  # what could not be written was reported when it was tried
            self._file.close()
        self._lock.release()


def read_entries(path: str | Path) -> tuple[list[Any], int]:
    """The values of a journal, and how many bytes their lines take; a torn last line is left out.

    Raises:
        DatoError: if it cannot be read, or a line that is not the last one is bad.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise DatoError(f"cannot read {path}: {error.strerror}") from None
    entries, whole = [], 0
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("it does not end")
            entries.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise DatoError(f"{path}: line {number} is damaged: {error}; remove that line") from None
        whole += len(line)
    return entries, whole


FORMAT = "dato.journal"


VERSION = 1


def read_judgements(path: Path) -> list[Judgement]:
    """All judgements of a search's journal, in their order. Raises DatoError if it is none of dato's, or damaged."""
    entries, _ = read_entries(path)
    check_header(entries[0] if entries else None, path)
    rungs, pruning = entries[0]["rungs"], Pruning.from_dict(entries[0]["pruning"])
    return [Judgement.from_dict(entry, rungs, pruning) for entry in entries if "judged" in entry or "failed" in entry]


def check_header(entry: Any, path: Path) -> None:
    """Raise DatoError unless this is the first line of a journal that this dato reads."""
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        raise DatoError(f"{path}: not a journal of dato's")
    if entry.get("version") != VERSION:
        raise DatoError(f"{path}: version {entry.get('version')!r} is not known here (newest: {VERSION})")
    if missing := sorted({"command", "rungs", "pruning", "options", "settings"} - set(entry)):
        raise DatoError(f"{path}: its first line has no {missing[0]!r}")
