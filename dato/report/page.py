"""A run's page: one HTML file with the front, every schedule on it, its images and how to use it.

The file holds all it needs (plotly.js, data, images), asks no network for anything and works from a folder. Whatever
comes from a run (prompts, names, settings) travels as JSON and is written into the page as text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from dato.errors import DatoError
from dato.evaluation.baselines import family_of
from dato.front import Front
from dato.metrics import METRICS, label_of, shown
from dato.point import Point
from dato.report.tables import forecast_of, mean_ratio
from dato.samplers import SAMPLERS
from dato.schedule import Schedule
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.run_record import Run
from dato.utils.files import write_atomic

_HERE = Path(__file__).parent


def write_page(runs: Sequence[Run], path: str | Path) -> None:
    """Write one self-contained HTML page about a run, or about several beside each other.

    Args:
        runs: What to show; the first one is shown first.
        path: Where to.

    Raises:
        DatoError: if there is no run, two have the same name, a sample is no image, or the place cannot be written to.
    """
    if not runs:
        raise DatoError("a page needs at least one run")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise DatoError(f"a page needs runs of different names, not {', '.join(names)}")
    style, script = (_HERE / "page.css").read_text("utf-8"), (_HERE / "page.js").read_text("utf-8")
    plotly = get_plotlyjs()
    parts = {
        "title": html.escape(", ".join(names)),
        # Nothing may be fetched, and no script may run but these two, even if data found a way to become markup.
        "policy": f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
        f"script-src {_hash(plotly)} {_hash(script)}",
        "style": style,
        "data": _embedded(page_data(runs)),
        "plotly": plotly,
        "script": script,
    }
    template = (_HERE / "page.html").read_text("utf-8")
    # In one pass: what is filled in is not searched for placeholders.
    write_atomic(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """All that the page shows, as plain JSON values; metrics carry the field's sign (a distance is positive).

    Raises:
        DatoError: if a sample is no image.
    """
    names = list(dict.fromkeys(name for run in runs for name in _metrics(run.front)))
    return {
        "metrics": [{"name": name, "label": label_of(name), "lower": shown(name, 1) < 0} for name in names],
        "runs": [_run(run, volume) for run, volume in zip(runs, _volumes(runs), strict=True)],
    }


def pick_of(front: Front, point: Point) -> dict[str, float]:
    """What to give `Front.pick` to get just this point, in as few digits as do: {"speedup": 4.9}.

    Args:
        front: Where to pick.
        point: One of its points.

    Returns:
        One keyword argument; none if no speed-up and no quality leads to this point.
    """
    for name in ("speedup", "quality"):
        for digits in range(1, 9):
            # Rounded down: the point has to reach what is asked for.
            value = math.floor(getattr(point, name) * 10**digits) / 10**digits
            try:
                if front.pick(**{name: value}) is point:
                    return {name: value}
            except DatoError:
                continue
    return {}


def _run(run: Run, volume: dict[str, Any] | None) -> dict[str, Any]:
    front, known = run.front, {point.schedule: name for name, point in run.front.references.items()}
    found = {point.schedule for point in front.points}
    knee = front.knee()
    points = []
    for number, point in enumerate(front.points):
        also = known.get(point.schedule)
        family = {} if also is None else {"also": also, "family": family_of(point.schedule)}
        points.append(
            {"label": f"Point {number}", "kind": "front", "knee": point is knee}
            | family
            | _point(run, point)
            | _use(run, point, number)
        )
    others = [
        {"label": name, "kind": "reference", "family": family_of(point.schedule)}
        | _point(run, point)
        | _use(run, point, name)
        for name, point in sorted(front.references.items(), key=lambda item: item[1].latency_ms)
        if point.schedule not in found
    ]
    apart = found | set(known)
    candidates = [
        {"speedup": point.speedup, "values": _values(front, point)}
        for point in run.history
        if math.isfinite(point.quality) and point.schedule not in apart
    ]
    conditions = front.conditions
    return {
        "name": run.name,
        "file": run.strategy,
        "quality": _quality(front),
        "stock": {"label": "Stock", "kind": "stock"} | _point(run, front.baseline),
        "points": points,
        "references": others,
        "candidates": candidates,
        "counts": _counts(run),
        "volume": volume,
        "settings": _settings(conditions),
        "prompts": [str(prompt) for prompt in conditions.get("prompts", [])],
    }


def _point(run: Run, point: Point) -> dict[str, Any]:
    schedule, front = point.schedule, run.front
    known = _metrics(front)
    return {
        "speedup": point.speedup,
        "latency": point.latency_ms,
        "values": _values(front, point),
        "others": {name: _finite(value) for name, value in point.metrics.items() if name not in known},
        "steps": point.steps or front.conditions.get("steps"),
        "scheduler": point.scheduler or front.conditions.get("scheduler_name") or front.conditions.get("scheduler"),
        "rungs": schedule.rungs,
        "depths": list(schedule.depths),
        "ratios": list(schedule.ratios) if any(schedule.ratios) else None,
        "orders": list(schedule.orders) if any(schedule.orders) else None,
        "order": forecast_of(schedule),
        "ratio": mean_ratio(schedule),
        "forecast": schedule.forecast,
        "sample": _sample(run, schedule),
    }


def _use(run: Run, point: Point, place: int | str) -> dict[str, Any]:
    """The shell command (None where no pick leads to the point) and the Python lines that run a point."""
    front, conditions = run.front, run.front.conditions
    prompt = str(next(iter(conditions.get("prompts", [])), "a prompt"))
    pick = pick_of(front, point) if isinstance(place, int) else {}
    shell = None
    if pick:
        name, value = next(iter(pick.items()))
        # The command line takes qualities with the field's sign, `Front.pick` with the sign that makes more better.
        value = shown(_quality(front), value) if name == "quality" else value
        words = ["python", "scripts/generate.py", "--strategy", run.strategy, "--pick", f"{name}={value:.12g}"]
        shell = shlex.join([*words, *(["--"] if prompt.startswith("-") else []), prompt])
    source = f"dato.load_front({_quoted(run.strategy)})"
    chosen = ", ".join(f"{name}={value:.12g}" for name, value in pick.items())
    own = point.steps is not None or point.scheduler is not None
    lines = ["import dato", ""]
    scheduler = point.scheduler or conditions.get("scheduler_name")
    if scheduler in SAMPLERS:
        lines.append(f"dato.set_scheduler(pipe, {_quoted(scheduler)})")
    arguments = [_quoted(prompt)]
    arguments += [f"{key}={conditions[key]!r}" for key in ("guidance_scale", "height", "width") if key in conditions]
    if pick and not own:
        lines.append(f"dato.apply_patch(pipe, {_quoted(run.strategy)}, {chosen})")
    else:
        attribute = f".points[{place}]" if isinstance(place, int) else f".references[{_quoted(place)}]"
        lines += [f"point = {source}{f'.pick({chosen})' if pick else attribute}", "dato.apply_patch(pipe, point)"]
    if point.steps is not None:
        arguments.append("**point.kwargs")
    elif "steps" in conditions:
        arguments.append(f"num_inference_steps={conditions['steps']!r}")
    lines.append(f"image = pipe({', '.join(arguments)}).images[0]")
    return {"shell": shell, "python": "\n".join(lines)}


def _volumes(runs: Sequence[Run]) -> list[dict[str, Any] | None]:
    """The hypervolume of each run by evaluation; runs with the same metric share a scale, so that they compare."""
    scales: dict[str, Scale] = {}
    for metric in {_quality(run.front) for run in runs}:
        histories = [run.history for run in runs if _quality(run.front) == metric]
        if any(math.isfinite(point.quality) for history in histories for point in history):
            scales[metric] = Scale.of(histories)
    volumes: list[dict[str, Any] | None] = []
    for run in runs:
        metric = _quality(run.front)
        if not run.history or metric not in scales:
            volumes.append(None)
            continue
        scale = scales[metric]
        values = by_evaluation(run.history, scale)
        bounds = {"worst": shown(metric, scale.worst), "best": shown(metric, scale.best)}
        volumes.append({"values": [round(value, 6) for value in values], **bounds})
    return volumes


def _counts(run: Run) -> dict[str, Any]:
    search = run.front.conditions.get("search")
    search = search if isinstance(search, Mapping) else {}
    return {
        "points": len(run.front),
        "candidates": _plain(search.get("candidates", len(run.history) or None)),
        "images": _plain(search.get("images")),
        "failures": run.failures if run.history else None,
    }


def _settings(conditions: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The conditions as text, in groups: [(heading, [(name, value), ...]), ...]."""
    groups: dict[str, list[tuple[str, str]]] = {"Model and sampling": [], "Judging": [], "Search": [], "Versions": []}
    judging = ("quality", "clip", "statistics", "latency", "hardware", "seeds", "prompts_sha256")
    for key, value in conditions.items():
        if key in ("search", "versions") and isinstance(value, Mapping):
            groups[key.capitalize()] += [(str(name).replace("_", " "), _text(item)) for name, item in value.items()]
        elif key == "latency_table" and isinstance(value, Mapping):  # for machines: a line of numbers for each call
            groups["Judging"].append(("latency table", f"{len(value.get('calls', ()))} kinds of call"))
        elif key != "prompts":
            groups["Judging" if key in judging else "Model and sampling"].append((key.replace("_", " "), _text(value)))
    return [(heading, rows) for heading, rows in groups.items() if rows]


def _quality(front: Front) -> str:
    return str(front.conditions.get("quality", "quality"))


def _metrics(front: Front) -> list[str]:
    """The objective, then every other quality metric that stock was judged by."""
    return list(dict.fromkeys([_quality(front), *(name for name in front.baseline.metrics if name in METRICS)]))


def _values(front: Front, point: Point) -> dict[str, float | None]:
    values = {**point.metrics, _quality(front): point.quality}
    return {name: _finite(shown(name, values[name])) for name in _metrics(front) if name in values}


def _sample(run: Run, schedule: Schedule) -> dict[str, Any] | None:
    """A strip of images as a data URI, its size in pixels, and how many images there are in it."""
    strip = run.strip(schedule)
    if strip is None:
        return None
    uri = f"data:{strip.get_format_mimetype()};base64,{base64.b64encode(run.samples[schedule]).decode()}"
    return {"uri": uri, "width": strip.width, "height": strip.height, "count": run.images_in(strip)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """A value of the conditions, if it is a number or text that JSON has."""
    if isinstance(value, float):
        return _finite(value)
    return value if value is None or isinstance(value, (str, int)) else _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    """Text as a Python literal with double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element that it stands in."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda match: escapes[match[0]], text)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
