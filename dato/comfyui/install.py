"""Put dato's nodes into a ComfyUI: a folder in `custom_nodes` with two lines."""

from __future__ import annotations

from pathlib import Path

from dato.errors import DatoError
from dato.utils.files import write_atomic

FOLDER = "dato"
LINES = "from dato.comfyui.nodes import exports  # dato is installed in ComfyUI's Python\nglobals().update(exports())\n"


def install(path: Path) -> Path:
    """Write the folder, and return its file.

    Args:
        path: The folder of a ComfyUI, or its `custom_nodes`.

    Raises:
        DatoError: if there is no ComfyUI, the folder cannot be written, or another thing of this name is there.
    """
    file = _custom_nodes(path) / FOLDER / "__init__.py"
    if file.parent.exists() and not _is_ours(file):
        raise DatoError(f"{file.parent} is there already, and dato did not write it; move it away first")
    try:
        file.parent.mkdir(exist_ok=True)
        write_atomic(file, LINES)
    except OSError as error:
        raise DatoError(f"cannot write {file}: {error.strerror or error}") from None
    return file


def _custom_nodes(path: Path) -> Path:
    if not path.is_dir():
        raise DatoError(f"{path} is no folder; give the folder of a ComfyUI, which has main.py and custom_nodes")
    if path.name == "custom_nodes":
        return path
    folder = path / "custom_nodes"
    if not (path / "comfy").is_dir() or not folder.is_dir():
        raise DatoError(f"{path} is no ComfyUI: there are no folders comfy and custom_nodes in it")
    return folder


def _is_ours(file: Path) -> bool:
    """Return whether dato has written a file, perhaps an older dato, and the folder has nothing else."""
    others = [other for other in file.parent.iterdir() if other.name not in (file.name, "__pycache__")]
    if others or not file.is_file():
        return False
    return "dato.comfyui" in file.read_text(encoding="utf-8", errors="replace")
