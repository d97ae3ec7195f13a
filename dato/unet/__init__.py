"""Run a schedule in a UNet: the ladder, the cache and its forecasts, and the patch that puts them into a pipeline."""

from dato.unet.compiled import CompiledCalls
from dato.unet.ladder import Ladder
from dato.unet.patch import apply_patch, current_schedule, patched, remove_patch

__all__ = ["CompiledCalls", "Ladder", "apply_patch", "current_schedule", "patched", "remove_patch"]
