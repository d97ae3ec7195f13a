"""What the stages share: the run's folder, where each part is found in it, the device, the precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dato.emoji_sd.pictures import Pictures
from dato.emoji_sd.training.recipe import Recipe
from dato.errors import DatoError

# Where `--init` keeps what a stage leaves in the run's folder: the layout of the exported model.
IN_EXPORT = {
    "tokenizer": "pipe/tokenizer",
    "clip": "clip",
    "vae": "pipe/vae",
    "unet": "pipe/unet",
    "clip-image": "clip",
}


@dataclass(frozen=True)
class Workspace:
    """One training run. `save_seconds`: time between checkpoints; `bf16`: whether to train in autocast."""

    out: Path
    pictures: Pictures
    recipe: Recipe
    device: torch.device
    bf16: bool
    init: Path | None = None
    seed: int = 0
    save_seconds: float = 60.0

    def folder(self, stage: str) -> Path:
        """Where a stage leaves its result; the folder appears when the stage is done, and is whole then."""
        return self.out / stage

    def unfinished(self, name: str) -> Path:
        """A file that only a stage in progress needs."""
        return self.out / "unfinished" / name

    def done(self, stage: str) -> bool:
        """Whether the stage has left its result."""
        return (self.folder(stage) / "log.json").is_file()

    def find(self, stage: str) -> Path:
        """A finished stage's folder, or that part of `--init`.

        Raises:
            DatoError: there is neither.
        """
        if self.done(stage):
            return self.folder(stage)
        if found := self.initial(stage):
            return found
        raise DatoError(f"stage '{stage}' comes first: add it to --stages, or give a trained model with --init")

    def initial(self, stage: str) -> Path | None:
        """That part of `--init`, or None without `--init`. Raises DatoError where `--init` lacks it."""
        if self.init is None:
            return None
        found = self.init / IN_EXPORT[stage]
        if not found.is_dir():
            raise DatoError(f"--init {self.init} has no folder {IN_EXPORT[stage]}")
        return found

    def autocast(self):
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def choose_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda`. Raises DatoError for others, and for cuda where there is none."""
    if name not in ("auto", "cpu", "cuda"):
        raise DatoError(f"--device is auto, cpu or cuda, not '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise DatoError("--device cuda: this PyTorch finds no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(name: str, device: torch.device) -> bool:
    """Whether to train in bf16 autocast; `auto`: where it is native, for emulated it is slower than float32.

    Raises:
        DatoError: the name is not auto, bf16 or float32.
    """
    if name not in ("auto", "bf16", "float32"):
        raise DatoError(f"--precision is auto, bf16 or float32, not '{name}'")
    if name != "auto":
        return name == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
