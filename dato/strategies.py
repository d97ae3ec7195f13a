"""Load fronts and schedules: by path, by the name of a shipped one, or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from dato.errors import DatoError
from dato.front import Front, file_in, front_of, read_strategy
from dato.hub.names import is_name
from dato.schedule import Schedule


def load_front(path_or_name: str | Path) -> Front:
    """Load a front from its JSON file, from its run's folder, by a shipped one's name, or from the hub.

    Args:
        path_or_name: A file, a folder, a name of `strategies`, or user/name or user/name@revision on the hub.

    Raises:
        DatoError: if there is no such file or name, the hub cannot be reached, or the file is not a valid front.

    Example:
        >>> front = load_front("emoji-sd-depth")
        >>> front.conditions["quality"], front.conditions["scheduler_name"]
        ('psnr', 'dpm++2m')
        >>> all(point.speedup > 1 for point in front.points)
        True
    """
    return front_of(load_strategy(path_or_name), path_or_name)


def load_strategy(path_or_name: str | Path) -> Front | Schedule:
    """Load a front or a schedule. The argument and the errors are those of `load_front`."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_dir() and name not in strategies():
        path = file_in(path)
    if not path.is_file():
        shipped = strategies()
        if name not in shipped:
            if isinstance(path_or_name, str) and is_name(name):
                from dato.hub.repository import fetch  # it loads the hub's client, which takes a second

                return read_strategy(fetch(name))
            raise DatoError(f"no file and no shipped strategy {name!r}; shipped are: {', '.join(sorted(shipped))}")
        path = shipped[name]
    return read_strategy(path)


def strategies() -> dict[str, Path]:
    """Return the shipped schedules and fronts, {name: file}."""
    package = Path(__file__).parent
    # In a wheel the folder is inside the package, in a checkout beside it.
    folders = (package / "shipped_strategies", package.parent / "strategies")
    folder = next((path for path in folders if path.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in folder.glob("*.json")}
