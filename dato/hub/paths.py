"""Remove folders of this machine from a front's conditions before the front is shared."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from dato.hub.names import cached_repository, is_repository
from dato.metrics import OPTIONS

# Conditions whose text is a hub id, a name or a path.
_NAMES = ("model", "depths", "warm_start", *(name for name, option in OPTIONS.items() if option.is_path))
_ABSOLUTE = re.compile(r"[\\/]|~\w*[\\/]|\.\.?[\\/]|[A-Za-z]:[\\/]|file:")
_FOLDERS = re.compile(r"(?<![\w./\\~])(?:file://)?(?:~|\b[A-Za-z]:)?[\\/](?:[^\s\\/'\":,;()]+[\\/])+")


def without_paths(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Return a front's conditions with every path on this machine cut to its last part. Prompts stay as they are.

    A model's folder in the hub's cache becomes the model's id.
    """
    return {key: value if key == "prompts" else _bare(value, key) for key, value in conditions.items()}


def is_hub_id(value: Any) -> bool:
    """Return whether diffusers would look for a value on the hub: it has the form user/name and is no path here."""
    return isinstance(value, str) and is_repository(value) and not os.path.exists(value)


def _bare(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_bare(name): _bare(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_bare(item, key) for item in value)
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.match(value) or (key in _NAMES and "/" in value and not is_hub_id(value)) or "\\" in value:
        return cached_repository(value) or re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _FOLDERS.sub("", value)
