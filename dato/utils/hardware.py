"""What computed: the hardware and the versions that a measurement has to name."""

from __future__ import annotations

import contextlib
import platform
from importlib.metadata import version

import torch


def hardware(device: torch.device | str) -> str:
    """The name of what computes: the GPU's, or the processor's and its number of threads."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = "CPU"
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    return f"{name}, {torch.get_num_threads()} threads"


def versions(*packages: str) -> dict[str, str]:
    """Python's version and those of these installed packages."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
