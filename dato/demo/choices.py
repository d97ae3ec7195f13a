"""What can be chosen on the page: a point of a front, one schedule, or the rule for a speed-up."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dato.front import Front
from dato.metrics import label_of, shown, text_of
from dato.point import Point
from dato.report.columns import plain_texts
from dato.report.usage import pick_of
from dato.samplers import known_sampler
from dato.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

RULE_SPEEDUPS = (1.5, 2.0, 2.5, 3.0, 4.0, 5.0)  # of the rule, in the list of what can be compared


@dataclass(frozen=True)
class Choice:
    """One way to run the pipeline faster.

    Attributes:
        name: What the page calls it, such as "5.22x".
        source: What runs: a point, a schedule, or the speed-up of the rule.
        python: The arguments of `dato.apply_patch` after the pipeline, as Python writes them.
        options: The options of `dato generate` that choose it. (): no option does.
        said: What its front says of it, with terms in braces; "" if it is of no front.
        own_steps: Its number of sampler steps. None: it is for any number.
        own_sampler: Its sampler, a name of `dato.samplers.SAMPLERS`. None: it is for the page's.
    """

    name: str
    source: Point | Schedule | float
    python: str
    options: tuple[str, ...]
    said: str = ""
    own_steps: int | None = None
    own_sampler: str | None = None

    def steps(self, usual: int) -> int:
        """Return its number of sampler steps, or `usual` if it is for any number."""
        return self.own_steps or usual

    @contextlib.contextmanager
    def patched(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """Let a pipeline run it within a `with` block."""
        from dato.samplers import sampler_set  # the page's texts need no torch
        from dato.unet.patch import patched

        runs = {"speedup": self.source} if isinstance(self.source, float) else {"schedule": self.source}
        with sampler_set(pipe, self.own_sampler), patched(pipe, **runs):
            yield


def choices_of(
    strategy: Front | Schedule, name: str, steps: int | None = None, scheduler: str | None = None
) -> tuple[list[Choice], int]:
    """Return the choices of a front or schedule, slowest first, and which of them the page begins with.

    Args:
        strategy: The front or schedule.
        name: The name by which `dato.load_front` and `--strategy` find it.
        steps: How many steps all of them run. None: each point's own.
        scheduler: The sampler that all of them run with. None: each point's own.
    """
    options = ("--strategy", name)
    if isinstance(strategy, Schedule):
        return [Choice(name, strategy, _quoted(name), options)], 0
    choices = [_of_point(strategy, number, name) for number in range(len(strategy.points))]
    if steps is not None:
        choices = [replace(choice, own_steps=None) for choice in choices]
    if scheduler is not None:
        choices = [replace(choice, own_sampler=None) for choice in choices]
    return choices[::-1], len(choices) - 1 - strategy.knee_index


def rule_choice(speedup: float) -> Choice:
    """Return the choice that is the rule's schedule for a speed-up.

    Raises:
        DatoError: if the speed-up is not a finite number above 1.
    """
    from dato.unet.speedup_rule import checked_speedup

    number = f"{checked_speedup(speedup):.12g}"
    return Choice(f"rule {number}x", float(speedup), f"speedup={number}", ("--speedup", number))


def _of_point(front: Front, number: int, name: str) -> Choice:
    point, pick = front.points[number], pick_of(front, front.points[number])
    if pick:
        key, value = next(iter(pick.items()))
        python = f"{_quoted(name)}, {key}={value:.12g}"
        # The command line takes a quality with the sign of the field.
        typed = shown(str(front.conditions.get("quality")), value) if key == "quality" else value
        options = ("--strategy", name, "--pick", f"{key}={typed:.12g}")
    else:
        python, options = f"dato.load_front({_quoted(name)}).points[{number}]", ()
    said, sampler = _said(front, point), known_sampler(point.scheduler)
    return Choice(f"{point.speedup:.2f}x", point, python, options, said, point.steps, sampler)


def _said(front: Front, point: Point) -> str:
    """Return what a front says of a point, as a text of the page: terms are in braces."""
    metric = str(front.conditions.get("quality", "quality"))
    quality = label_of(metric).replace("PSNR", "{PSNR}")
    said = f"The {{front}} says: {point.speedup:.2f}x as fast, {quality} {text_of(metric, point.quality)}."
    plain = plain_texts(front.plain_steps(point))
    if plain is None:
        return said
    steps = plain[0].replace(">", "more than ").replace("<", "fewer than ")
    faster = plain[1].replace(">", "more than ").replace("<", "less than ")
    return f"{said} That is as good as {steps} {{plain steps}}" + (
        f", and {faster} as fast as those." if faster else "."
    )


def _quoted(text: str) -> str:
    """Return text as a Python literal with double quotes."""
    return json.dumps(text, ensure_ascii=False)
