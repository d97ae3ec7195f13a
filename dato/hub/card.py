"""The model card of a front on the Hugging Face hub: what the front holds, under what conditions, how to use it.

What is shared names nobody's folders: of a place on the machine that searched, only the last part goes along.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dato.front import FILE, Front
from dato.samplers import SAMPLERS
from dato.utils.files import read_text

CARD = "README.md"
REPO = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")
# Conditions whose text is a hub id, a name or a place.
_NAMES = ("model", "clip", "statistics", "image_reward", "pick_score", "inception", "real", "depths")
_ABSOLUTE = re.compile(r"[\\/]|~\w*[\\/]|\.\.?[\\/]|[A-Za-z]:[\\/]|file:")
_FOLDERS = re.compile(r"(?<![\w./\\~])(?:file://)?(?:~|\b[A-Za-z]:)?[\\/](?:[^\s\\/'\":,;()]+[\\/])+")
# A model that is named by its place in the hub's cache.
CACHED = re.compile(r"[\\/]models--([^\\/]+)[\\/]snapshots[\\/][^\\/]+[\\/]?$")
_MARK = "<!-- dato "


def card_in(folder: str | Path) -> str | None:
    """The card that lies beside a front; None if there is none, or that README.md is about something else."""
    path = Path(folder) / CARD
    text = read_text(path) if path.is_file() else ""
    return text if re.match(r"---\n(?:.*\n)*?library_name: *dato *\n(?:.*\n)*?---\n", text) else None


def front_card(front: Front, name: str) -> str:
    """A model card: what the front holds, under what conditions, and how to use it by that name."""
    from dato.metrics.registry import (  # with these come the metrics' libraries, which downloading does not need
        METRICS,
        shown,
    )
    from dato.report.tables import label_of
    from dato.utils.markdown import markdown

    known, knee = front.conditions, front.knee()
    metric, model = str(known.get("quality", "quality")), known.get("model")
    header = ModelCardData(
        library_name="dato",
        base_model=model if _is_hub_id(model) else None,
        tags=["stable-diffusion", "dato", "caching", "token-pruning"],
    )

    def sampler(point: Any) -> str:
        return point.scheduler or known.get("scheduler_name") or known.get("scheduler") or ""

    rows = []  # + 0.0: a distance of nothing is 0, not -0
    for number, point in enumerate((*front.points, front.baseline)):
        label = "stock" if number == len(front) else f"{number} ★" if point is knee else f"{number}"
        quality = shown(METRICS[metric], point.quality) if metric in METRICS else point.quality
        cells = {"point": label, "speed-up": f"{point.speedup:.2f}x", label_of(metric): f"{quality + 0.0:.4g}"}
        rows.append(cells | {"steps": f"{point.steps or known.get('steps') or ''}", "sampler": sampler(point)})

    size = [known.get("width"), known.get("height")]
    conditions = {
        "model": model,
        "hardware": known.get("hardware"),
        "dtype": known.get("dtype"),
        "size": None if None in size else f"{size[0]} x {size[1]}",
        "steps of stock": known.get("steps"),
        "guidance scale": known.get("guidance_scale"),
        "quality metric": label_of(metric),
        "prompts": len(known["prompts"]) if "prompts" in known else None,
    }
    listed = "".join(f"- {key}: {_line(value)}\n" for key, value in conditions.items() if value is not None)

    arguments = ['"a prompt"']
    if "guidance_scale" in known:
        arguments.append(f"guidance_scale={known['guidance_scale']:g}")
    if "steps" not in known or all(point.steps for point in front.points):
        arguments.append("**point.kwargs")
    elif any(point.steps for point in front.points):
        arguments.append(f'**{{"num_inference_steps": {known["steps"]}}} | point.kwargs')
    else:
        arguments.append(f"num_inference_steps={known['steps']}")
    own = f'dato.set_scheduler(pipe, "{sampler(knee)}")\n' if sampler(knee) in SAMPLERS else ""
    fastest, slowest = (f"{speed(p.speedup for p in front.points):.2f}x" for speed in (max, min))
    body = f"""---
{header.to_yaml()}
---

# {name.rpartition("/")[2]}

{len(front)} schedules of feature caching and token pruning for {_line(model or "a UNet")}, found by dato:
{slowest} to {fastest} as fast as stock.

{markdown(rows)}
★ is the knee, which `apply_patch` takes unless it is told otherwise. A speed-up is stock's time by the schedule's.

## Conditions
{listed}
`{FILE}` has them all, the prompts too, and what the schedules were compared with.

## Use
`pipe` is the model's pipeline in diffusers:

```python
import dato

point = dato.load_front({json.dumps(name)}).knee()  # or .pick(speedup=...), .pick(quality=...)
{own}dato.apply_patch(pipe, point)
image = pipe({", ".join(arguments)}).images[0]
```
"""
    return f"{body}{_MARK}{_digest(body)} -->\n"


def without_places(front: Front) -> Front:
    """The front, with the last part only of each place on this machine that its conditions name."""
    known = {key: value if key == "prompts" else _bare(value, key) for key, value in front.conditions.items()}
    return replace(front, conditions=known)


def card_of(front: Front, name: str, *edited: str | None) -> str:
    """The first of these cards that somebody has edited, else dato's own."""
    own = front_card(front, name)
    for text in edited:
        if text is not None and not _is_untouched(text):
            table = next(part for part in own.split("\n\n") if part.startswith("| point"))
            if table.strip() not in text:
                warnings.warn(f"{CARD} is kept as it was edited, and its table is not this front's", stacklevel=4)
            return text
    return own


def _bare(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {_bare(name): _bare(item, str(name)) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_bare(item, key) for item in value)
    if not isinstance(value, str):
        return value
    if _ABSOLUTE.match(value) or (key in _NAMES and "/" in value and not _is_hub_id(value)) or "\\" in value:
        cached = CACHED.search(value)  # a model that was given as its place in the hub's cache
        return cached[1].replace("--", "/") if cached else re.split(r"[\\/]", value.rstrip("\\/"))[-1]
    return _FOLDERS.sub("", value)


def _is_hub_id(value: Any) -> bool:
    # As diffusers reads it: what is there as a folder is that folder.
    return isinstance(value, str) and REPO.fullmatch(value) is not None and not os.path.exists(value)


def _is_untouched(card: str) -> bool:
    body, _, mark = card.rpartition(_MARK)
    return mark.strip() == f"{_digest(body)} -->"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:20]


def _line(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
