"""Loading fronts and schedules by path, by a shipped one's name, or from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from dato.errors import DatoError
from dato.front import Front, file_in, front_of, read_strategy
from dato.schedule import Schedule


def load_front(path_or_name: str | Path) -> Front:
    """Load a front from its JSON file or its run's folder, a shipped one by name, or user/name[@revision] from the hub.

    Raises:
        DatoError: if there is no such file or name, the hub cannot be reached, or what is there is not a valid front.

    Example:
        >>> front = load_front("emoji-sd-depth")
        >>> front.conditions["quality"], front.conditions["scheduler_name"]
        ('psnr', 'dpm++2m')
        >>> all(point.speedup > 1 for point in front.points)
        True
    """
    return front_of(load_strategy(path_or_name), path_or_name)


def load_strategy(path_or_name: str | Path) -> Front | Schedule:
    """Load a front or schedule by its file, its folder, or its name: shipped, or the hub's. Raises as `load_front`."""
    path, name = Path(path_or_name), str(path_or_name)
    if path.is_dir() and name not in strategies():
        path = file_in(path)
    if not path.is_file():
        shipped = strategies()
        if name not in shipped:
            from dato.hub.repository import fetch, is_name  # not before it is needed

            if isinstance(path_or_name, str) and is_name(name):
                return read_strategy(fetch(name))
            raise DatoError(f"no file and no shipped strategy {name!r}; shipped are: {', '.join(sorted(shipped))}")
        path = shipped[name]
    return read_strategy(path)


def strategies() -> dict[str, Path]:
    """The shipped schedules and fronts: {name: file}."""
    here = Path(__file__).parent
    # In a wheel the folder lies inside the package, in a checkout beside it.
    folder = next((f for f in (here / "shipped_strategies", here.parent / "strategies") if f.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in folder.glob("*.json")}
