"""How to use a point of a front: the shell command and the lines of Python that a run's page shows."""

from __future__ import annotations

import json
import math
import shlex

from dato.errors import DatoError
from dato.front import Front
from dato.metrics import shown
from dato.point import Point
from dato.report.columns import metrics_of
from dato.samplers import SAMPLERS
from dato.search.run_folder import Run


def pick_of(front: Front, point: Point) -> dict[str, float]:
    """Return what `Front.pick` needs to return just this point, in as few digits as suffice: {"speedup": 4.9}.

    Args:
        front: The front.
        point: One of its points.

    Returns:
        One keyword argument. None if no speed-up and no quality picks this point.
    """
    for name in ("speedup", "quality"):
        for digits in range(1, 9):
            # Rounded down, because the point has to reach what is asked for.
            value = math.floor(getattr(point, name) * 10**digits) / 10**digits
            try:
                if front.pick(**{name: value}) is point:
                    return {name: value}
            except DatoError:
                continue
    return {}


def use_of_point(run: Run, number: int) -> dict[str, str | None]:
    """Return the commands for a point of the front, by its number: {"shell": command or None, "python": lines}.

    There is no shell command if no speed-up and no quality picks the point.
    """
    point = run.front.points[number]
    pick = pick_of(run.front, point)
    source = f"dato.load_front({_quoted(run.strategy)})"
    choice = ", ".join(f"{name}={value:.12g}" for name, value in pick.items())
    if pick and point.steps is None and point.scheduler is None:
        patch = [f"dato.apply_patch(pipe, {_quoted(run.strategy)}, {choice}{_compile(run)})"]
    else:
        lookup = f"pick({choice})" if pick else f"points[{number}]"
        patch = [f"point = {source}.{lookup}", f"dato.apply_patch(pipe, point{_compile(run)})"]
    return {"shell": _shell(run, pick), "python": _python(run, point, patch)}


def use_of_reference(run: Run, name: str) -> dict[str, str | None]:
    """Return the commands for a reference, by its name, as `use_of_point` does. It has no shell command."""
    source = f"dato.load_front({_quoted(run.strategy)}).references[{_quoted(name)}]"
    patch = [f"point = {source}", f"dato.apply_patch(pipe, point{_compile(run)})"]
    return {"shell": None, "python": _python(run, run.front.references[name], patch)}


def _shell(run: Run, pick: dict[str, float]) -> str | None:
    if not pick:
        return None
    name, value = next(iter(pick.items()))
    # The command line takes a quality with the sign of the field. In `Front.pick` higher is always better.
    value = shown(metrics_of(run.front)[0], value) if name == "quality" else value
    words = ["python", "scripts/generate.py", "--strategy", run.strategy, "--pick", f"{name}={value:.12g}"]
    prompt = _prompt(run)
    return shlex.join([*words, *(["--"] if prompt.startswith("-") else []), prompt])


def _python(run: Run, point: Point, patch: list[str]) -> str:
    """Return the lines that set the sampler, patch the pipeline (`patch`) and generate an image."""
    conditions = run.front.conditions
    scheduler = point.scheduler or conditions.get("scheduler_name")
    lines = ["import dato", ""]
    if scheduler in SAMPLERS:
        lines.append(f"dato.set_scheduler(pipe, {_quoted(scheduler)})")
    arguments = [_quoted(_prompt(run))]
    arguments += [f"{key}={conditions[key]!r}" for key in ("guidance_scale", "height", "width") if key in conditions]
    if point.steps is not None:
        arguments.append("**point.kwargs")
    elif "steps" in conditions:
        arguments.append(f"num_inference_steps={conditions['steps']!r}")
    return "\n".join([*lines, *patch, f"image = pipe({', '.join(arguments)}).images[0]"])


def _compile(run: Run) -> str:
    """Return the argument of `apply_patch` that makes the front's times come true: they may be of compiled calls."""
    return ", compile=True" if run.front.conditions.get("compiled") else ""


def _prompt(run: Run) -> str:
    return str(next(iter(run.front.conditions.get("prompts", [])), "a prompt"))


def _quoted(text: str) -> str:
    """Return text as a Python literal with double quotes."""
    return json.dumps(text, ensure_ascii=False)
