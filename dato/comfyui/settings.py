"""What dato's nodes set: it travels with the model through the graph, and never changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dato.errors import DatoError
from dato.front import Front
from dato.point import Point
from dato.pruning import Pruning
from dato.schedule import Schedule
from dato.strategies import load_strategy

KEY = "dato"  # of the settings among a model's `transformer_options`
RUN_KEY = "dato_run"  # of the `Run` that is going on, beside them


@dataclass(frozen=True)
class Settings:
    """The settings of both nodes.

    Attributes:
        name: What the schedule is called; None if no schedule was chosen.
        schedule: The schedule; None: the rule makes one, or there is none.
        point: The point of a front that the schedule comes from, if it does.
        speedup: For the rule: how many times fewer FLOPs the UNet takes.
        start: The share of the calls before which all calls are whole.
        end: The share of the calls after which all calls are whole.
        ratio: The ratio of all calls; None: the schedule's ratios.
        pruning: The settings of pruning; None: the schedule's.
        nodes: The ids of dato's nodes in the graph, where texts are shown.
    """

    name: str | None = None
    schedule: Schedule | None = None
    point: Point | None = field(default=None, repr=False)
    speedup: float | None = None
    start: float = 0.0
    end: float = 1.0
    ratio: float | None = None
    pruning: Pruning | None = None
    nodes: tuple[str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Settings:
        """Return itself: ComfyUI copies a model's options deeply, and this never changes."""
        return self

    def with_schedule(self, **values: Any) -> Settings:
        """Return the settings with what the node "apply schedule" sets, instead of what an earlier one has set."""
        none = {"name": None, "schedule": None, "point": None, "speedup": None, "start": 0.0, "end": 1.0}
        return replace(self, **none | values)

    def with_node(self, node: str | None) -> Settings:
        """Return the settings with one more node that shows texts."""
        return self if node is None or node in self.nodes else replace(self, nodes=(*self.nodes, node))


def settings_of(options: Mapping[str, Any]) -> Settings:
    """Return the settings in `transformer_options`. If there are none, nothing is set."""
    return options.get(KEY, Settings())


def chosen(name: str, pick: str, speedup: float, quality: float) -> tuple[Schedule, Point | None]:
    """Load a front or a schedule, and return the schedule, with its point if it is of a front.

    Args:
        name: A path, the name of a shipped one, or user/name on the Hugging Face hub.
        pick: "speed-up", "quality" or "knee". A schedule alone needs no choice.
        speedup: For "speed-up".
        quality: For "quality".

    Raises:
        DatoError: if it cannot be loaded, or no point is fast or good enough.
    """
    loaded = load_strategy(name)
    if not isinstance(loaded, Front):
        return loaded, None
    options: dict[str, dict[str, float]] = {"speed-up": {"speedup": speedup}, "quality": {"quality": quality}}
    if pick not in (*options, "knee"):
        raise DatoError(f"`pick` must be speed-up, quality or knee, not {pick!r}")
    point = loaded.choose(**options.get(pick, {}))
    return point.schedule, point
