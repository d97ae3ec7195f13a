"""A journal: a file to which JSON values are appended, one a line. Each is on the disk before it counts.

Whatever kills the process, all lines that were appended before stay whole. At most the last line is torn. It is dropped
when the journal is opened again.
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

FORMAT = "dato.journal"
VERSION = 1


class Journal:
    """An open journal. Only one process at a time can open it.

    Args:
        path: The file. It is created if it does not exist.

    Attributes:
        entries: All values, the oldest first.
        torn: Whether a torn last line was dropped.

    Raises:
        DatoError: if the file cannot be written, another process has it open, or a line before the last is damaged.
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
            raise DatoError(f"cannot write {self.path}: {error.strerror}; choose another folder (`out`)") from None
        try:
            self.entries, whole = read_entries(self.path)
            self.torn = whole < self.path.stat().st_size
            if self.torn:
                self._file.truncate(whole)
        except DatoError:
            self.close()
            raise

    def append(self, entry: Any) -> None:
        """Append a value. When this returns, the value is on the disk.

        Raises:
            DatoError: if it cannot be written. What was appended before is safe.
        """
        line = json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n"
        try:
            self._file.write(line.encode(errors="backslashreplace"))  # as JSON writes what is not UTF-8
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.close()
            raise DatoError(
                f"cannot write {self.path}: {error.strerror}; all before it is kept: make room, then resume "
                f"the search in {self.path.parent}"
            ) from None
        self.entries.append(entry)

    def close(self) -> None:
        """Close the file, so that another process can open it."""
        with contextlib.suppress(OSError):  # a failed write was reported when it happened
            self._file.close()
        self._lock.release()


def read_entries(path: str | Path) -> tuple[list[Any], int]:
    """Return the values of a journal, and the number of bytes of their lines. A torn last line is left out.

    Raises:
        DatoError: if it cannot be read, or a line before the last is damaged.
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
                raise ValueError("it is cut off")
            entries.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise DatoError(f"{path}: line {number} is damaged: {error}; remove that line") from None
        whole += len(line)
    return entries, whole


def read_judgements(path: Path) -> list[Judgement]:
    """Return all judgements of a search's journal, in their order.

    Raises:
        DatoError: if it is not a journal of dato's, or is damaged.
    """
    entries, _ = read_entries(path)
    check_header(entries[0] if entries else None, path)
    rungs, pruning = entries[0]["rungs"], Pruning.from_dict(entries[0]["pruning"])
    return [Judgement.from_dict(entry, rungs, pruning) for entry in entries if "judged" in entry or "failed" in entry]


def check_header(entry: Any, path: Path) -> None:
    """Raise DatoError unless this is the first line of a journal that this version of dato reads."""
    if not isinstance(entry, dict) or entry.get("format") != FORMAT:
        raise DatoError(f"{path}: not a journal of dato's")
    if entry.get("version") != VERSION:
        raise DatoError(f"{path}: version {entry.get('version')!r} is not known here (newest: {VERSION})")
    if missing := sorted({"command", "rungs", "pruning", "options", "settings"} - set(entry)):
        raise DatoError(f"{path}: its first line has no {missing[0]!r}")
