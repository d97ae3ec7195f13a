"""The names of the hardware and the versions of packages, to be kept with every measurement."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def hardware(device: torch.device | str) -> str:
    """Return the name of the GPU, or the name of the processor and the number of threads."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = "CPU"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of these installed packages, by name."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
