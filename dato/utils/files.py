"""Read and write files. Errors name the file, and no file is ever half written."""

from __future__ import annotations

import io
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dato.errors import DatoError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_atomic(path: str | Path, data: str | bytes) -> None:
    """Write a file so that at any moment it is either the old one or the whole new one.

    Raises:
        DatoError: if the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise DatoError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            # A file's name may hold bytes that are not UTF-8. They become what JSON writes for them, too.
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes a private file. Give it the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise DatoError(f"cannot write {path}: {error.strerror}") from None
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def has_suffix(path: str | Path, *suffixes: str) -> bool:
    """Return whether a path ends in one of the suffixes (".png"), in small letters or in capitals."""
    return Path(path).suffix.lower() in suffixes


def read_text(path: str | Path, newlines: bool = True) -> str:
    """Return the text of a UTF-8 file, whatever the locale is.

    Args:
        path: The file.
        newlines: Whether each end of a line, of any system, becomes a line feed. If not, the text stays as it is.

    Raises:
        DatoError: if it is missing, unreadable or not text.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return text.replace("\r\n", "\n").replace("\r", "\n") if newlines else text
    except UnicodeDecodeError:
        raise DatoError(f"{path} is not a text file (UTF-8): save it as UTF-8") from None
    except OSError as error:
        raise DatoError(f"cannot read {path}: {error.strerror}") from None


def read_json(path: str | Path) -> Any:
    """Return the value in a JSON file. Raise DatoError if it is missing, unreadable or not JSON."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DatoError(f"{path} is not JSON: {error}") from None


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> None:
    """Write a matplotlib figure as a PNG, atomically. Raise DatoError if the file cannot be written."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi)
    write_atomic(path, data.getvalue())


def dumps(data: Any, indent: int = 0) -> str:
    """Return JSON text in which a list of plain values takes one line, so that a person can read a schedule.

    A number that is not finite is written as null.
    """
    pad = " " * (indent + 1)
    if isinstance(data, dict) and data:
        items = [f"{pad}{json.dumps(key)}: {dumps(value, indent + 1)}" for key, value in data.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if isinstance(data, list) and any(isinstance(value, (dict, list)) for value in data):
        return "[\n" + ",\n".join(pad + dumps(value, indent + 1) for value in data) + "\n" + " " * indent + "]"
    return json.dumps(finite(data), ensure_ascii=False, allow_nan=False)


def finite(data: Any) -> Any:
    """Return JSON values with null in place of NaN and infinities, which JSON does not have."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
