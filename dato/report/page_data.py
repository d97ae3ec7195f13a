"""All that a run's page shows, as plain JSON values."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dato.evaluation.baselines import family_of
from dato.front import Front
from dato.metrics import METRICS, label_of, shown
from dato.metrics.base import Metric
from dato.plain_steps import is_plain
from dato.point import Point
from dato.report.columns import (
    PLAIN_STEPS,
    PLAIN_STEPS_MEANING,
    SPREAD,
    SPREAD_MEANING,
    columns_of,
    metrics_of,
    plain_texts,
)
from dato.report.schedule_text import forecast_of, mean_ratio
from dato.report.usage import use_of_point, use_of_reference
from dato.schedule import Schedule
from dato.search.hypervolume import Scale, by_evaluation
from dato.search.run_folder import Run

# Of the conditions.
JUDGING = ("quality", "clip", "statistics", "latency", "compiled", "hardware", "seeds", "prompts_sha256")


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Return all that the page shows. Metrics have the sign of the field: a distance is positive.

    Raises:
        DatoError: if a sample is no image.
    """
    names = list(dict.fromkeys(name for run in runs for name in metrics_of(run.front)))
    return {
        "metrics": [
            {"name": name, "label": label_of(name), "lower": shown(name, 1) < 0, "digits": _digits(name)}
            for name in names
        ],
        "meanings": {PLAIN_STEPS: PLAIN_STEPS_MEANING, SPREAD: SPREAD_MEANING},
        "runs": [_run(run, volume) for run, volume in zip(runs, _volumes(runs), strict=True)],
    }


def schedule_data(schedule: Schedule) -> dict[str, Any]:
    """Return what parts.js draws of a schedule. Ratios and orders are None if all of them are 0."""
    return {
        "rungs": schedule.rungs,
        "depths": list(schedule.depths),
        "ratios": list(schedule.ratios) if any(schedule.ratios) else None,
        "orders": list(schedule.orders) if any(schedule.orders) else None,
        "order": forecast_of(schedule),
        "ratio": mean_ratio(schedule),
        "forecast": schedule.forecast,
    }


def _run(run: Run, volume: dict[str, Any] | None) -> dict[str, Any]:
    front = run.front
    on_front = {point.schedule for point in front.points}
    names = {point.schedule: name for name, point in front.references.items()}
    others = sorted(front.references.items(), key=lambda item: item[1].latency_ms)
    table = {
        "points": [_front_point(run, number, names) for number in range(len(front.points))],
        "references": [_reference(run, name) for name, point in others if point.schedule not in on_front],
        "stock": {"label": "Stock", "kind": "stock"} | _point(run, front.baseline),
    }
    candidates = [
        {"speedup": point.speedup, "values": _values(front, point)}
        for point in run.history
        if math.isfinite(point.quality) and point.schedule not in on_front and point.schedule not in names
    ]
    return {
        "name": run.name,
        "file": run.strategy,
        "quality": metrics_of(front)[0],
        "columns": [column.heading for column in _columns(front)],
        **table,
        "candidates": candidates,
        "counts": _counts(run),
        "volume": volume,
        "settings": _settings(front.conditions),
        "prompts": run.sample_prompts,
    }


def _front_point(run: Run, number: int, names: Mapping[Schedule, str]) -> dict[str, Any]:
    """Return a point of the front. If it is a reference, too, its other name and family are `also` and `family`."""
    point = run.front.points[number]
    data = {"label": f"Point {number}", "kind": "front", "knee": point is run.front.knee()}
    if point.schedule in names:
        data |= {"also": names[point.schedule], "family": family_of(point.schedule)}
    return data | _point(run, point) | use_of_point(run, number)


def _reference(run: Run, name: str) -> dict[str, Any]:
    point = run.front.references[name]
    data = {"label": name, "kind": "reference", "family": family_of(point.schedule)}
    return data | _point(run, point) | use_of_reference(run, name)


def _point(run: Run, point: Point) -> dict[str, Any]:
    schedule, front = point.schedule, run.front
    metrics = metrics_of(front)
    return {
        "speedup": point.speedup,
        "latency": point.latency_ms,
        "values": _values(front, point),
        "others": {name: _finite(value) for name, value in point.metrics.items() if name not in metrics},
        "plain": plain_texts(None if is_plain(point) else front.plain_steps(point)),
        "cells": [column.text(point) for column in _columns(front)],
        "steps": point.steps or front.conditions.get("steps"),
        "scheduler": point.scheduler or front.conditions.get("scheduler_name") or front.conditions.get("scheduler"),
        **schedule_data(schedule),
        "sample": _sample(run, schedule),
    }


def _columns(front: Front) -> list[Any]:
    points = [*front.points, *front.references.values(), front.baseline]
    return columns_of(points, front.baseline, metrics_of(front))


def _volumes(runs: Sequence[Run]) -> list[dict[str, Any] | None]:
    """Return the hypervolume of each run by candidate. Runs with the same metric share a scale, so they compare."""
    scales: dict[str, Scale] = {}
    for metric in {metrics_of(run.front)[0] for run in runs}:
        histories = [run.history for run in runs if metrics_of(run.front)[0] == metric]
        if any(math.isfinite(point.quality) for history in histories for point in history):
            scales[metric] = Scale.of(histories)
    volumes: list[dict[str, Any] | None] = []
    for run in runs:
        metric = metrics_of(run.front)[0]
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
    """Return the conditions as text, in groups: [(heading, [(name, value), ...]), ...]."""
    groups: dict[str, list[tuple[str, str]]] = {"Model and sampling": [], "Judging": [], "Search": [], "Versions": []}
    for key, value in conditions.items():
        if key in ("search", "versions") and isinstance(value, Mapping):
            groups[key.capitalize()] += [(str(name).replace("_", " "), _text(item)) for name, item in value.items()]
        elif key == "latency_table" and isinstance(value, Mapping):  # too long to be shown: a line for each kind
            groups["Judging"].append(("latency table", f"{len(value.get('calls', ()))} kinds of call"))
        elif key != "prompts":
            groups["Judging" if key in JUDGING else "Model and sampling"].append((key.replace("_", " "), _text(value)))
    return [(heading, rows) for heading, rows in groups.items() if rows]


def _values(front: Front, point: Point) -> dict[str, float | None]:
    metrics = metrics_of(front)
    values = {**point.metrics, metrics[0]: point.quality}
    return {name: _finite(shown(name, values[name])) for name in metrics if name in values}


def _digits(metric: str) -> int:
    return METRICS[metric].digits if metric in METRICS else Metric.digits


def _sample(run: Run, schedule: Schedule) -> dict[str, Any] | None:
    """Return a strip of images as a data URI, its size in pixels, and how many images it holds."""
    strip = run.strip(schedule)
    if strip is None:
        return None
    uri = f"data:{strip.get_format_mimetype()};base64,{base64.b64encode(run.samples[schedule]).decode()}"
    return {"uri": uri, "width": strip.width, "height": strip.height, "count": run.images_in(strip)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """Return a value of the conditions as a number or text that JSON has."""
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
