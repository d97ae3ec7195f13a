"""What one UNet call computes, reads and keeps. The ladder, the cache, the models and the planner all use this.

A *place* is what the cache holds values of: a rung, for what arrives there from below, or `LAST`, for the prediction
(for a rule that caches the last feature, that feature). The call of depth d < D reads place d - 1 and computes places
-1 to d - 2. The whole call reads nothing and computes all places. The call of depth 0 computes nothing.

This module needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dato.forecast_rule import POLYNOMIAL, ForecastRule, rule_at

LAST = -1


@dataclass(frozen=True)
class Call:
    """One call of a schedule. The defaults describe a call that reuses the last value of a place.

    Attributes:
        index: The call's position in the generation, from 0.
        depth: As in `Schedule`.
        ratio: As in `Schedule`.
        reads: The place whose values the call reads; None for the whole call.
        computes: The places that the call computes a value of.
        rule: The rule that applies at this call, which need not be the schedule's.
        values: How many past values the call reads at most; 0 for the whole call.
        sources: The earlier calls that computed the values that it reads, ascending. This holds for a generation that
            runs the whole schedule. A generation that begins later, as in img2img, has fewer.
        since: The call at which the timesteps last turned round, 0 if they never did. Of older values only the last
            one is read, and alone.
        keep: How many values of each place later calls will need. Places that no later call reads are not in it. None
            means that the last value of every place is kept.
    """

    index: int = 0
    depth: int = 0
    ratio: float = 0.0
    reads: int | None = LAST
    computes: range = range(0)
    rule: ForecastRule = POLYNOMIAL
    values: int = 1
    sources: tuple[int, ...] = ()
    since: int = 0
    keep: Mapping[int, int] | None = None

    @property
    def order(self) -> int:
        """The order of the forecast that is made: lower than the schedule's while fewer values exist."""
        return self.rule.made(len(self.sources))[0] if self.sources else 0

    @property
    def forecast(self) -> str:
        """The name of the rule by which the forecast is made; "polynomial" at order 0."""
        return self.rule.made(len(self.sources))[1] if self.sources else POLYNOMIAL.name


def place_read(depth: int, rungs: int) -> int | None:
    """Return the place that a call of this depth reads, or None for the whole call."""
    return depth - 1 if depth < rungs else None


def places_computed(depth: int) -> range:
    """Return the places that a call of this depth computes: the prediction and all of its rungs but the lowest."""
    return range(LAST, depth - 1) if depth else range(0)


@lru_cache(maxsize=256)
def describe_calls(
    depths: tuple[int, ...],
    ratios: tuple[float, ...],
    orders: tuple[int, ...],
    rungs: int,
    forecast: str,
    times: tuple[float, ...] | None,
) -> tuple[Call, ...]:
    """Describe each call of a schedule. Others use `Schedule.calls`, which calls this.

    Args:
        depths: One for each call, as in `Schedule`.
        ratios: One for each call, as in `Schedule`.
        orders: One for each call, as in `Schedule`.
        rungs: The depth of the whole call.
        forecast: The schedule's rule.
        times: The timestep of each call; None if they are not known. Then all of them count as different, and falling.
    """
    since = last_turns(times) if times is not None else (0,) * len(depths)
    computes = [places_computed(depth) for depth in depths]
    reads = [place_read(depth, rungs) for depth in depths]
    rules = [
        (POLYNOMIAL, 0) if place is None else rule_at(forecast, order, of_prediction=place == LAST)
        for place, order in zip(reads, orders, strict=True)
    ]
    keep = _values_to_keep(reads, computes, [values for _, values in rules], times, since)
    computed: dict[int, list[int]] = {place: [] for place in reads if place is not None}  # place -> calls
    calls = []
    for index, (depth, place, (rule, values)) in enumerate(zip(depths, reads, rules, strict=True)):
        past = () if place is None else computed[place][-values:]
        sources = tuple(source for source in past if source >= since[index]) or tuple(past[-1:])
        described = depth, ratios[index], place, computes[index], rule, values, sources, since[index], keep[index]
        calls.append(Call(index, *described))
        for other, past in computed.items():
            if other in computes[index]:
                if times is not None and past and times[past[-1]] == times[index]:
                    past.pop()  # a second value at the same timestep replaces the first
                past.append(index)
    return tuple(calls)


def forecasts_made(depths: Sequence[int], orders: Sequence[int], rungs: int, forecast: str) -> list[tuple[int, str]]:
    """Return what `Call.order` and `Call.forecast` are for each call, if timesteps are different, and fall.

    A search predicts tens of thousands of latencies from these, and describing all of a call takes far longer.

    Args:
        depths: One for each call, as in `Schedule`.
        orders: One for each call, as in `Schedule`.
        rungs: The depth of the whole call.
        forecast: The schedule's rule.
    """
    found = dict.fromkeys(set(depths) - {rungs}, 0)  # depth -> how often what it reads was computed: by deeper calls
    made = []
    for depth, order in zip(depths, orders, strict=True):
        whole = depth == rungs
        made.append((0, POLYNOMIAL.name) if whole else forecast_made(forecast, order, depth, found[depth]))
        for other in found:
            if other < depth:
                found[other] += 1
    return made


@lru_cache(maxsize=4096)
def forecast_made(forecast: str, order: int, depth: int, found: int) -> tuple[int, str]:
    """Return order and rule of the forecast of a partial call that finds `found` values."""
    rule, values = rule_at(forecast, order, of_prediction=depth == 0)
    return rule.made(min(values, found))


def _values_to_keep(
    reads: Sequence[int | None],
    computes: Sequence[range],
    values: Sequence[int],
    times: tuple[float, ...] | None,
    since: Sequence[int],
) -> list[dict[int, int]]:
    """Return for each call how many values of each place its later calls need; `values`: how many each call reads."""
    keep: list[dict[int, int]] = [{} for _ in reads]
    for place in {place for place in reads if place is not None}:
        computing = [call for call, places in enumerate(computes) if place in places]
        need = 0
        for call in range(len(reads) - 1, 0, -1):
            if computing and computing[-1] == call:
                computing.pop()
                before = computing[-1] if computing else call
                # A value at the same timestep as the one before replaces that one, so all older values are still
                # needed.
                if times is not None and times[before] != times[call]:
                    need = max(0, need - 1)
            elif reads[call] == place:
                need = max(need, values[call])
            if since[call]:
                recent = sum(other >= since[call] for other in computing)
                need = min(need, recent if place in computes[call] else max(1, recent))
            if need:
                keep[call - 1][place] = need
    return keep


def last_turns(times: Sequence[float]) -> tuple[int, ...]:
    """Return for each call the one at which the timesteps last turned round before it, as a restarting sampler's do."""
    found, direction, plateau = [0] * len(times), 0.0, 0
    for call in range(1, len(times)):
        step = times[call] - times[call - 1]
        found[call] = plateau if step * direction < 0 else found[call - 1]
        if step:
            direction, plateau = step, call  # the first of the calls at this timestep
    return tuple(found)
