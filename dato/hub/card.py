"""The model card of a front on the Hugging Face hub: what the front holds, its conditions, and how to use it."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dato.hub.names import CARD_FILE, FRONT_FILE
from dato.hub.paths import is_hub_id
from dato.metrics import label_of, shown
from dato.samplers import SAMPLERS
from dato.utils.files import read_text
from dato.utils.markdown import markdown

# The card's last line holds a digest of the lines above it. It tells whether somebody has edited the card.
_MARK = "<!-- dato "


def card_in(folder: str | Path) -> str | None:
    """Return the card in a front's folder. Return None if there is none, or README.md is no card of dato's."""
    path = Path(folder) / CARD_FILE
    text = read_text(path) if path.is_file() else ""
    return text if re.match(r"---\n(?:.*\n)*?library_name: *dato *\n(?:.*\n)*?---\n", text) else None


def front_card(front: Mapping[str, Any], knee: int, name: str) -> str:
    """Return the text of a front's model card.

    Args:
        front: The front as a dictionary, see `Front.to_dict`.
        knee: The index of its knee in `front["front"]`.
        name: How the front is loaded: user/name on the hub, or a folder.
    """
    body = f"{_header(front['conditions'])}\n{_results(front, knee, name)}\n{_use(front, knee, name)}"
    return f"{body}{_MARK}{_digest(body)} -->\n"


def choose_card(front: Mapping[str, Any], knee: int, name: str, cards: Sequence[str | None]) -> str:
    """Return the first given card that somebody has edited, else a new one. Other arguments as in `front_card`.

    Warn if the edited card does not have the table of this front.
    """
    new = front_card(front, knee, name)
    for text in cards:
        if text is not None and not _is_untouched(text):
            table = next(part for part in new.split("\n\n") if part.startswith("| point"))
            if table.strip() not in text:
                warnings.warn(f"{CARD_FILE} is kept as it was edited, and its table is not this front's", stacklevel=4)
            return text
    return new


def _header(conditions: Mapping[str, Any]) -> str:
    from huggingface_hub import ModelCardData  # importing it takes a second, and reading a front needs no card

    model = conditions.get("model")
    data = ModelCardData(
        library_name="dato",
        base_model=model if is_hub_id(model) else None,
        tags=["stable-diffusion", "dato", "caching", "token-pruning"],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _results(front: Mapping[str, Any], knee: int, name: str) -> str:
    """The title, the table of points and the conditions."""
    conditions, points = front["conditions"], front["front"]
    model = _line(conditions.get("model") or "a UNet")
    speedups = [point["speedup"] for point in points]
    listed = "".join(f"- {key}: {_line(value)}\n" for key, value in _conditions(conditions) if value is not None)
    return f"""# {name.rpartition("/")[2]}

{len(points)} schedules of feature caching and token pruning for {model}, found by dato:
{min(speedups):.2f}x to {max(speedups):.2f}x as fast as stock.

{markdown(_rows(front, knee))}
★ is the knee, which `apply_patch` takes by default. A speed-up is stock's time divided by the schedule's.

## Conditions
{listed}
`{FRONT_FILE}` has them all, the prompts too, and what the schedules were compared with.
"""


def _rows(front: Mapping[str, Any], knee: int) -> list[dict[str, str]]:
    conditions = front["conditions"]
    metric = str(conditions.get("quality", "quality"))
    labels = [f"{number} ★" if number == knee else f"{number}" for number in range(len(front["front"]))]
    rows = []
    for label, point in zip((*labels, "stock"), (*front["front"], front["baseline"]), strict=True):
        quality = shown(metric, point["quality"]) + 0.0  # a distance of nothing is 0, not -0
        row = {"point": label, "speed-up": f"{point['speedup']:.2f}x", label_of(metric): f"{quality:.4g}"}
        steps = point.get("steps") or conditions.get("steps") or ""
        rows.append(row | {"steps": f"{steps}", "sampler": _sampler(point, conditions)})
    return rows


def _conditions(conditions: Mapping[str, Any]) -> list[tuple[str, Any]]:
    width, height = conditions.get("width"), conditions.get("height")
    return [
        ("model", conditions.get("model")),
        ("variant", conditions.get("variant")),
        ("hardware", conditions.get("hardware")),
        ("dtype", conditions.get("dtype")),
        ("calls", "compiled, stock's too" if conditions.get("compiled") else None),
        ("size", None if None in (width, height) else f"{width} x {height}"),
        ("steps of stock", conditions.get("steps")),
        ("guidance scale", conditions.get("guidance_scale")),
        ("quality metric", label_of(str(conditions.get("quality", "quality")))),
        ("prompts", len(conditions["prompts"]) if "prompts" in conditions else None),
    ]


def _use(front: Mapping[str, Any], knee: int, name: str) -> str:
    """Python that loads the front, and applies and runs its knee."""
    conditions, points = front["conditions"], front["front"]
    arguments = ['"a prompt"']
    if "guidance_scale" in conditions:
        arguments.append(f"guidance_scale={conditions['guidance_scale']:g}")
    if "steps" not in conditions or all(point.get("steps") for point in points):
        arguments.append("**point.kwargs")
    elif any(point.get("steps") for point in points):
        arguments.append(f'**{{"num_inference_steps": {conditions["steps"]}}} | point.kwargs')
    else:
        arguments.append(f"num_inference_steps={conditions['steps']}")
    compile_too = ", compile=True" if conditions.get("compiled") else ""
    sampler = _sampler(points[knee], conditions)
    set_sampler = f'dato.set_scheduler(pipe, "{sampler}")\n' if sampler in SAMPLERS else ""
    return f"""## Use
`pipe` is the model's pipeline in diffusers:

```python
import dato

point = dato.load_front({json.dumps(name)}).knee()  # or .pick(speedup=...), .pick(quality=...)
{set_sampler}dato.apply_patch(pipe, point{compile_too})
image = pipe({", ".join(arguments)}).images[0]
```
"""


def _sampler(point: Mapping[str, Any], conditions: Mapping[str, Any]) -> str:
    return point.get("scheduler") or conditions.get("scheduler_name") or conditions.get("scheduler") or ""


def _is_untouched(card: str) -> bool:
    body, _, mark = card.rpartition(_MARK)
    return mark.strip() == f"{_digest(body)} -->"


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:20]


def _line(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
