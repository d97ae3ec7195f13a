"""dato: search cache-and-prune schedules for UNet diffusion models, and run them.

`apply_patch(pipe, front)` makes a diffusers pipeline faster, `remove_patch(pipe)` makes it the stock pipeline again,
`load_front` reads a searched front, and `dato.search` searches one on a pipeline and prompts of your own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dato import _moved
from dato.utils.lazy import lazy_exports

if TYPE_CHECKING:
    from dato import emoji_sd, sito
    from dato.errors import DatoError
    from dato.front import Front
    from dato.generation import load_pipeline
    from dato.point import Point
    from dato.pruning import Pruning
    from dato.samplers import num_calls, set_scheduler
    from dato.schedule import Schedule
    from dato.schemas import front_schema, schedule_schema
    from dato.strategies import load_front
    from dato.unet import CompiledCalls, apply_patch, current_schedule, patched, remove_patch, rule

__version__ = "0.1.0"

# torch and diffusers take seconds to import, and reading a front needs neither.
__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CompiledCalls": "dato.unet",
        "DatoError": "dato.errors",
        "Front": "dato.front",
        "Point": "dato.point",
        "Pruning": "dato.pruning",
        "Schedule": "dato.schedule",
        "apply_patch": "dato.unet",
        "current_schedule": "dato.unet",
        "emoji_sd": "dato.emoji_sd",
        "front_schema": "dato.schemas",
        "load_front": "dato.strategies",
        "load_pipeline": "dato.generation",
        "num_calls": "dato.samplers",
        "patched": "dato.unet",
        "remove_patch": "dato.unet",
        "rule": "dato.unet",
        "schedule_schema": "dato.schemas",
        "search": "dato.search",
        "set_scheduler": "dato.samplers",
        "sito": "dato.sito",
        "tokens": "dato.tokens",
        "unet": "dato.unet",
        **_moved.ATTRIBUTES,
    },
)
__all__ = [name for name in __all__ if name not in _moved.ATTRIBUTES]
_moved.install()
