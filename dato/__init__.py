"""dato: search cache-and-prune schedules for UNet diffusion models, and run them."""

from dato import emoji_sd
from dato.errors import DatoError
from dato.front import Front, Point, load_front
from dato.patch import apply_patch, current_schedule, patched, remove_patch
from dato.pruning import Pruning
from dato.samplers import set_scheduler
from dato.schedule import Schedule

__all__ = [
    "DatoError",
    "Front",
    "Point",
    "Pruning",
    "Schedule",
    "apply_patch",
    "current_schedule",
    "emoji_sd",
    "load_front",
    "patched",
    "remove_patch",
    "set_scheduler",
]

__version__ = "0.1.0"
