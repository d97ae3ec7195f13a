"""What the page says of what is loaded."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from dato.demo import markup, texts
from dato.generation.sampling import image_size
from dato.samplers import sampler_name
from dato.utils.hardware import hardware

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from dato.generation.sampling import Sampling


def heading(model: str, pipe: DiffusionPipeline, stock: Sampling) -> str:
    """Return the page's heading as HTML: what it is for, and the model, the sampler, the size and the hardware."""
    height, width = image_size(pipe, stock)
    parts = [
        escape(model),
        f"{stock.steps} {markup.term('steps')} of {markup.term('sampler', sampler_name(pipe.scheduler))}",
        f"{markup.term('guidance')} {stock.guidance_scale:g}",
        f"{width} × {height} pixels",
        escape(hardware(pipe.unet.device)),
    ]
    inside = f"<h1>{escape(texts.TITLE)}</h1><p>{markup.text(texts.INTRO)}</p>"
    return markup.block(f'{inside}<p class="muted">{" · ".join(parts)}</p>')


def without_front(model: str) -> str:
    """Return what the first tab says if there is no front of the model, as HTML."""
    search = f"dato search depth --model {model} --prompts FILE --out runs/mine"
    return markup.text(texts.NO_FRONT, search=search, again="dato demo --strategy runs/mine")
