"""What the stages share: the run's folder and the parts in it, the device, the precision."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dato.emoji_sd.pictures import Pictures
from dato.emoji_sd.training.recipe import Recipe
from dato.errors import DatoError

# Where an exported model has the result of each stage.
IN_EXPORT = {
    "tokenizer": "pipe/tokenizer",
    "clip": "clip",
    "vae": "pipe/vae",
    "unet": "pipe/unet",
    "clip-image": "clip",
}


@dataclass(frozen=True)
class Workspace:
    """One training run.

    Attributes:
        out: The run's folder.
        pictures: The data.
        recipe: All settings of the training.
        device: Where it trains.
        bf16: Whether it trains in autocast to bfloat16.
        init: The folder of an exported model to go on from. Parts that are not trained are taken from it.
        seed: Of the initial weights and of every random draw.
        save_seconds: Seconds between checkpoints.
    """

    out: Path
    pictures: Pictures
    recipe: Recipe
    device: torch.device
    bf16: bool
    init: Path | None = None
    seed: int = 0
    save_seconds: float = 60.0

    def folder(self, stage: str) -> Path:
        """Return the folder of a stage's result. It exists only when the stage is done."""
        return self.out / stage

    def unfinished(self, name: str) -> Path:
        """Return the path of a file that a stage needs only while it runs."""
        return self.out / "unfinished" / name

    def done(self, stage: str) -> bool:
        """Return whether the stage is done."""
        return (self.folder(stage) / "log.json").is_file()

    def find(self, stage: str) -> Path:
        """Return a finished stage's folder, or that part of the initial model.

        Raises:
            DatoError: if there is neither.
        """
        if self.done(stage):
            return self.folder(stage)
        if part := self.initial(stage):
            return part
        raise DatoError(f"stage '{stage}' comes first: add it to `stages`, or give a trained model as `init`")

    def initial(self, stage: str) -> Path | None:
        """Return that part of the initial model, or None if there is no initial model.

        Raises:
            DatoError: if the initial model does not have the part.
        """
        if self.init is None:
            return None
        part = self.init / IN_EXPORT[stage]
        if not part.is_dir():
            raise DatoError(f"the model to go on from (`init`), {self.init}, has no folder {IN_EXPORT[stage]}")
        return part

    def autocast(self) -> torch.autocast:
        """Return the context for forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)


def choose_device(name: str) -> torch.device:
    """Return the device of a name: auto, cpu or cuda.

    Raises:
        DatoError: if the name is another one, or there is no CUDA device for cuda.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DatoError(f"`device` is auto, cpu or cuda, not '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise DatoError("`device` cuda: this PyTorch finds no CUDA device")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_precision(name: str, device: torch.device) -> bool:
    """Return whether to train in autocast to bfloat16. "auto": if the device has it. Else it is slow.

    Raises:
        DatoError: if the name is not auto, bf16 or float32.
    """
    if name not in ("auto", "bf16", "float32"):
        raise DatoError(f"`precision` is auto, bf16 or float32, not '{name}'")
    if name != "auto":
        return name == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
