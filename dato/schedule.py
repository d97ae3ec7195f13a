"""A schedule: for each call of the UNet the depth to run at, the ratio of tokens to prune, the order of the forecast.

This module needs no torch.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from numbers import Integral, Real
from typing import Any

from dato.call import Call, describe_calls
from dato.errors import DatoError
from dato.forecast_rule import FORECASTS, POLYNOMIAL, RULES, ForecastRule
from dato.pruning import Pruning

FORMAT = "dato.schedule"
VERSION = 1
SD_RUNGS = 12  # Stable Diffusion 1.x and 2.x; SDXL has 9


@dataclass(frozen=True, eq=False)
class Schedule:
    """What each UNet call of one generation computes. Immutable.

    A *call* is one forward of the UNet. At depth `rungs` the whole UNet runs. At a depth d in between, only rungs
    0..d-1 run, and what arrives at rung d-1 from below comes from the cache (DeepCache's `cache_branch_id` is
    d - 1; Ma et al., CVPR 2024). At depth 0 nothing runs, and the prediction itself comes from the cache.

    Two schedules are equal if their canonical spellings are equal (see `canonical`). Equal schedules have equal hashes.
    A schedule keeps the spelling that it was made with: `to_json` of a loaded schedule writes what was loaded. So files
    and the names of files, which are hashes of that text, stay valid.

    Attributes:
        depths: One entry per call, each from 0 to `rungs`; the first is `rungs`.
        ratios: One entry per call, 0 <= ratio < 1: the share of tokens that transformer blocks leave out
            (Zhang et al., SiTo, AAAI 2025). A single number stands for all calls; None for no pruning.
        orders: One entry per call, 0, 1 or 2: what the call makes of cached values. 0 returns the last value
            (DeepCache). o > 0 forecasts the value by the polynomial of degree o, in the timestep, through the last o +
            1 values that were computed at different timesteps, and since the timesteps last turned round, if they did.
            A single number stands for all calls.
        rungs: The number of rungs of the UNet that the depths are meant for. If a UNet of another height is patched,
            whole calls stay whole.
        pruning: The settings of token pruning that belong to the ratios.
        forecast: What orders above 0 mean, one of `FORECASTS`: "polynomial"; "aligned", by which a value of order 1 at
            a depth between 0 and `rungs` continues as the skip connection beside it has continued; "chebyshev",
            Spectrum's rule (see `dato.unet.forecast`).

    Raises:
        DatoError: if lengths differ or a value is out of range.

    Example:
        >>> schedule = Schedule([12, 1, 0, 12], ratios=0.5, orders=1)
        >>> schedule.entries[1]  # depth, ratio, order
        (1, 0.5, 1)
        >>> Schedule.from_json(schedule.to_json()) == schedule
        True
        >>> Schedule([12, 1, 12], orders=1) == Schedule([12, 1, 12], orders=[0, 1, 0])  # whole calls read nothing
        True
    """

    depths: tuple[int, ...]
    ratios: tuple[float, ...] = None  # type: ignore[assignment]  # filled in below
    orders: tuple[int, ...] = 0  # type: ignore[assignment]
    rungs: int = SD_RUNGS
    pruning: Pruning = Pruning()
    forecast: str = POLYNOMIAL.name

    def __post_init__(self) -> None:
        _check_at_least(1, rungs=self.rungs)
        depths = tuple(_sequence("depths", self.depths))
        if not depths:
            raise DatoError("schedule: depths is empty; it needs one entry for each UNet call")
        ratios = _per_call("ratios", 0.0 if self.ratios is None else self.ratios, len(depths))
        orders = _per_call("orders", self.orders, len(depths))
        _check_depths(depths, self.rungs)
        _check_ratios_and_orders(ratios, orders)
        if not isinstance(self.pruning, Pruning):
            raise DatoError(f"schedule: pruning must be a dato.Pruning, not {type(self.pruning).__name__}")
        if self.forecast not in FORECASTS:
            raise DatoError(f"schedule: unknown forecast {self.forecast!r}; known are {', '.join(FORECASTS)}")
        object.__setattr__(self, "depths", tuple(int(d) for d in depths))
        object.__setattr__(self, "ratios", tuple(float(r) for r in ratios))
        object.__setattr__(self, "orders", tuple(int(o) for o in orders))

    @cached_property
    def _canonical_fields(self) -> tuple[Any, ...]:
        """The fields of `canonical`, in their order."""
        highest = max((o for d, o in zip(self.depths, self.orders, strict=True) if d < self.rungs), default=0)
        orders = tuple(o if d < self.rungs else highest for d, o in zip(self.depths, self.orders, strict=True))
        forecast = self.forecast if highest else POLYNOMIAL.name
        return self.depths, self.ratios, orders, self.rungs, self.pruning, forecast

    def __eq__(self, other: object) -> bool:
        """Whether the canonical spellings are equal."""
        if not isinstance(other, Schedule):
            return NotImplemented
        return self._canonical_fields == other._canonical_fields

    def __hash__(self) -> int:
        """The hash of the canonical spelling."""
        return hash(self._canonical_fields)

    def canonical(self) -> Schedule:
        """Return the same schedule in the one spelling that a search uses.

        Some entries make no difference, and the canonical spelling sets them:

        - A whole call reads nothing from the cache, so its order is the highest order of the other calls. Thus one
          number for all calls (`orders=1`) is canonical.
        - If no call forecasts anything, `forecast` is "polynomial".

        Searches have always written this spelling, so the files that they made are canonical.

        Example:
            >>> canonical = Schedule([12, 0, 12], orders=[0, 0, 1], forecast="aligned").canonical()
            >>> canonical.orders, canonical.forecast
            ((0, 0, 0), 'polynomial')
        """
        names = ("depths", "ratios", "orders", "rungs", "pruning", "forecast")
        if self._canonical_fields == tuple(getattr(self, name) for name in names):
            return self
        return Schedule(*self._canonical_fields)

    @property
    def rule(self) -> ForecastRule:
        """The rule that orders above 0 mean; the polynomial if no call forecasts anything."""
        return RULES[self._canonical_fields[-1]]

    def calls(self, times: Sequence[float] | None = None) -> tuple[Call, ...]:
        """Describe each call: what it computes, what it reads, and what has to be kept after it.

        Args:
            times: The timestep of each call, because a second value at the same timestep replaces the first. None:
                all timesteps are different, and fall.

        Raises:
            DatoError: if there are not as many timesteps as calls.

        Example:
            >>> call = Schedule([12, 12, 2, 1], orders=1).calls()[3]
            >>> call.reads, call.sources, call.order  # rung 0, of which call 2 computed a value, too
            (0, (1, 2), 1)
        """
        if times is not None and len(times) != len(self):
            raise DatoError(f"schedule: it has {len(self)} calls, and there are {len(times)} timesteps")
        depths, ratios, orders, rungs, _, forecast = self._canonical_fields
        return describe_calls(depths, ratios, orders, rungs, forecast, None if times is None else tuple(times))

    def __len__(self) -> int:
        """The number of calls."""
        return len(self.depths)

    @classmethod
    def full(cls, calls: int, *, rungs: int = SD_RUNGS) -> Schedule:
        """Return the stock pipeline's schedule: each of `calls` calls runs the whole UNet."""
        return cls.uniform(calls, 1, 0, rungs=rungs)

    @classmethod
    def uniform(
        cls,
        calls: int,
        interval: int,
        depth: int,
        order: int = 0,
        *,
        ratio: float = 0.0,
        rungs: int = SD_RUNGS,
        forecast: str = POLYNOMIAL.name,
    ) -> Schedule:
        """Return DeepCache's schedule: every `interval`-th call whole, the others at `depth`.

        DeepCache's `cache_branch_id` is `depth - 1`.

        Example:
            >>> Schedule.uniform(7, 3, 1).depths
            (12, 1, 1, 12, 1, 1, 12)
        """
        _check_at_least(1, calls=calls, interval=interval)
        depths = tuple(rungs if call % interval == 0 else depth for call in range(calls))
        return cls(depths, ratio, order, rungs=rungs, forecast=forecast)  # type: ignore[arg-type]

    @classmethod
    def spread(
        cls,
        calls: int,
        whole: int,
        depth: int = 0,
        order: int = 1,
        *,
        warmup: int = 1,
        cooldown: int = 1,
        growth: float = 1.0,
        shorter: str | None = None,
        tail: int = 0,
        rungs: int = SD_RUNGS,
        forecast: str = POLYNOMIAL.name,
    ) -> Schedule:
        """Return a schedule of a given number of whole calls, spread from the first call to the last.

        Call `round((calls - tail - 1) * (i / (whole - 1)) ** growth)` is whole for i = 0 to `whole - 1`. So the first
        call is, and the last one is without a tail. All other calls run at `depth`.

        Mostly the distances from one whole call to the next cannot all be equal, and some are longer by one call. The
        longer ones are mixed with the others. `shorter` sorts them.

        Args:
            calls: UNet calls of one generation.
            whole: How many of them are whole. With 1 it is the first one.
            depth: The depth of the other calls.
            order: The order of their forecasts.
            warmup: The first calls that are all whole; the other whole calls are spread over the rest.
            cooldown: The last calls before the tail that are all whole.
            growth: 1 spreads them evenly. Above 1 they are ever farther apart.
            shorter: "first" or "last": where the shorter distances come. It goes with none of the three above.
            tail: The calls after the last whole one.
            rungs: As in `Schedule`.
            forecast: As in `Schedule`.

        Raises:
            DatoError: if `tail` is below 0, `whole` not from 1 to `calls - tail`, `warmup` not from 1 to `whole`,
                `cooldown` too many beside it, `growth` not above 0, or `shorter` is not valid.

        Example:
            >>> Schedule.spread(8, 3).depths
            (12, 0, 0, 0, 12, 0, 0, 12)
            >>> Schedule.spread(8, 3, shorter="first").depths
            (12, 0, 0, 12, 0, 0, 0, 12)
            >>> Schedule.spread(8, 3, tail=1).depths
            (12, 0, 0, 12, 0, 0, 12, 0)
        """
        _check_at_least(1, calls=calls, whole=whole, warmup=warmup, cooldown=cooldown)
        _check_at_least(0, tail=tail)
        if not warmup <= whole <= calls - tail or not growth > 0:
            raise DatoError("schedule: it takes warmup <= whole <= calls - tail, and growth > 0")
        if cooldown > 1 and warmup + cooldown > whole:
            raise DatoError("schedule: it takes warmup + cooldown <= whole")
        if shorter not in (None, "first", "last") or (shorter and (warmup, cooldown, growth) != (1, 1, 1)):
            raise DatoError('schedule: shorter is "first" or "last", without a warm-up, a cool-down and growth')
        last = calls - tail
        chosen = _by_distance(last, whole, shorter) if shorter else _spread(last, whole, warmup, cooldown, growth)
        depths = tuple(rungs if call in chosen else depth for call in range(calls))
        return cls(depths, None, order, rungs=rungs, forecast=forecast)  # type: ignore[arg-type]

    @classmethod
    def growing(
        cls,
        calls: int,
        depth: int = 0,
        order: int = 1,
        *,
        warmup: int = 5,
        window: float = 2.0,
        growth: float = 0.75,
        rungs: int = SD_RUNGS,
        forecast: str = POLYNOMIAL.name,
    ) -> Schedule:
        """Return a schedule whose whole calls are ever farther apart.

        The first `warmup` calls are whole. After them come windows, and the last call of each window is whole. All
        other calls run at `depth`. The first window is `window` calls long (rounded down), and each window is `growth`
        calls longer than the one before it (Han et al., Spectrum, CVPR 2026). With `forecast="chebyshev"` this is
        Spectrum; `growth=3` is its faster setting.

        Raises:
            DatoError: if `warmup` or `window` is below 1, or `growth` is below 0.

        Example:
            >>> Schedule.growing(12, warmup=2, growth=1).depths
            (12, 12, 0, 12, 0, 0, 12, 0, 0, 0, 12, 0)
        """
        _check_at_least(1, calls=calls)
        if window < 1 or growth < 0 or warmup < 1:
            raise DatoError("schedule: growing windows need warmup >= 1, window >= 1 and growth >= 0")
        depths, waited = [], 0
        for call in range(calls):
            if call < warmup:
                depths.append(rungs)
            elif waited + 1 >= int(window):
                depths.append(rungs)
                waited, window = 0, window + growth
            else:
                depths.append(depth)
                waited += 1
        return cls(depths, None, order, rungs=rungs, forecast=forecast)  # type: ignore[arg-type]

    @cached_property
    def entries(self) -> tuple[tuple[int, float, int], ...]:
        """(depth, ratio, order) of each call."""
        return tuple(zip(self.depths, self.ratios, self.orders, strict=True))

    def with_ratios(self, ratios: float | Sequence[float]) -> Schedule:
        """Return the schedule with other prune ratios: one for each call, or one for all."""
        return replace(self, ratios=ratios)

    def with_order_at_most(self, order: int) -> Schedule:
        """Return the schedule for a reader that forecasts by polynomials of at most this degree; 0 means none at all.

        Higher orders become this one, and a forecast by another rule becomes the polynomial.

        Raises:
            DatoError: if `order` is not 0, 1 or 2.

        Example:
            >>> Schedule([12, 1, 0], orders=[0, 1, 2], forecast="aligned").with_order_at_most(1).orders
            (0, 1, 1)
        """
        if not _is_int(order) or order not in (0, 1, 2):
            raise DatoError(f"schedule: `order` must be 0, 1 or 2, not {order!r}")
        return replace(self, orders=tuple(min(o, order) for o in self.orders), forecast=POLYNOMIAL.name)

    def resampled(self, calls: int) -> Schedule:
        """Return the schedule stretched or squeezed to another number of calls.

        Each new call covers a stretch of old calls. It gets the entry that the new calls lack most so far (error
        diffusion). So every kind of call keeps its share and its place in time. Taking the nearest old call instead
        would turn "every second call" into all or nothing. The first call stays whole.

        Example:
            >>> Schedule.uniform(8, 2, 1).resampled(4).depths
            (12, 1, 12, 1)
        """
        _check_at_least(1, calls=calls)
        if calls == len(self):
            return self
        schedule = self.canonical()  # so that equal schedules are resampled alike
        old, span = schedule.entries, len(self) / calls
        owed: Counter[tuple[int, float, int]] = Counter()
        new: list[tuple[int, float, int]] = []
        for call in range(calls):
            start, stop = call * span, (call + 1) * span
            for i in range(int(start), min(len(old), int(stop) + 1)):
                owed[old[i]] += max(0.0, min(stop, i + 1) - max(start, i)) / span
            # Rounding keeps ties (as in "every second call") from being decided by the last bit.
            entry = old[0] if call == 0 else max(owed, key=lambda e: (round(owed[e], 9), e))
            owed[entry] -= 1
            new.append(entry)
        depths, ratios, orders = zip(*new, strict=True)
        return replace(schedule, depths=depths, ratios=ratios, orders=orders)

    def for_rungs(self, rungs: int) -> Schedule:
        """Return the schedule for a UNet of another height: whole calls stay whole, other depths stay as they are.

        Raises:
            DatoError: if that UNet does not have the depth of a partial call.
        """
        if rungs == self.rungs:
            return self
        deepest = max((d for d in self.depths if d != self.rungs), default=0)
        if deepest >= rungs:
            raise DatoError(
                f"schedule: depth {deepest} does not exist in a UNet of {rungs} rungs; search a schedule for it"
            )
        return replace(self, depths=tuple(rungs if d == self.rungs else d for d in self.depths), rungs=rungs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, with format name and version, in the spelling that the schedule was made with."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "rungs": self.rungs,
            "depths": list(self.depths),
            "ratios": list(self.ratios),
            "orders": list(self.orders),
            "pruning": self.pruning.to_dict(),
            **({} if self.forecast == POLYNOMIAL.name else {"forecast": self.forecast}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Schedule:
        """Make a schedule of what `to_dict` returned. Raise DatoError if something in it is not valid."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise DatoError(f'schedule: not a schedule: "format" is not "{FORMAT}"')
        check_version(data, FORMAT, VERSION)
        keys = {"format", "version", "rungs", "depths", "ratios", "orders", "pruning", "forecast", "name", "source"}
        unknown = sorted(set(data) - keys)
        if unknown:
            raise DatoError(f"schedule: unknown key {unknown[0]!r}")
        if "depths" not in data:
            raise DatoError('schedule: "depths" is missing')
        for key in ("name", "source"):
            if not isinstance(data.get(key, ""), str):
                raise DatoError(f"schedule: {key} must be text, not {data[key]!r}")
        pruning = Pruning.from_dict(data.get("pruning", {}))
        rungs, forecast = data.get("rungs", SD_RUNGS), data.get("forecast", POLYNOMIAL.name)
        return cls(data["depths"], data.get("ratios"), data.get("orders", 0), rungs, pruning, forecast)

    def to_json(self) -> str:
        """Return one line of JSON text."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """Make a schedule of what `to_json` returned. Raise DatoError if `text` is not a valid schedule."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise DatoError(f"schedule: not JSON: {error}") from None
        return cls.from_dict(data)


def _spread(calls: int, whole: int, warmup: int, cooldown: int, growth: float) -> set[int]:
    """Return the whole calls of `Schedule.spread`."""
    extra = cooldown - 1
    chosen, begin, end = {*range(warmup), *range(calls - extra, calls)}, warmup - 1, calls - 1 - extra
    parts = whole - warmup - extra
    for i in range(1, parts + 1):
        call = begin + round((end - begin) * (i / parts) ** growth)
        # Two of them may fall on one call where they are dense. Then the next free one is whole.
        chosen.add(next(c for c in (*range(call, calls), *range(call, 0, -1)) if c not in chosen))
    return chosen


def _by_distance(calls: int, whole: int, shorter: str) -> set[int]:
    """Return the whole calls of `Schedule.spread` whose distances are sorted."""
    distances = even_parts(calls - 1, whole - 1)
    return set(accumulate(distances if shorter == "first" else reversed(distances), initial=0))


def even_parts(calls: int, parts: int) -> list[int]:
    """Divide a number of calls into parts that are as equal as can be, ascending."""
    if not parts:
        return []
    size, larger = divmod(calls, parts)
    return [size] * (parts - larger) + [size + 1] * larger


def check_version(data: dict[str, Any], name: str, newest: int) -> None:
    """Raise DatoError unless `data["version"]` is a version that this dato reads."""
    version = data.get("version")
    if not _is_int(version) or not 1 <= version <= newest:
        raise DatoError(f"{name}: version {version!r} is not known here (newest: {newest}); a newer dato may read it")


def _is_int(value: object) -> bool:
    # A search makes many schedules, and this first test is quick.
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def _check_at_least(least: int, **numbers: object) -> None:
    for name, value in numbers.items():
        if not _is_int(value) or value < least:
            raise DatoError(f"schedule: {name} must be a whole number of at least {least}, not {value!r}")


def _check_depths(depths: tuple[Any, ...], rungs: int) -> None:
    for call, depth in enumerate(depths):
        if not _is_int(depth) or not 0 <= depth <= rungs:
            raise DatoError(f"schedule: depth {depth!r} of call {call} is not a whole number from 0 to {rungs}")
    if depths[0] != rungs:
        raise DatoError(
            f"schedule: the first call must run the whole UNet (depth {rungs}), not depth {depths[0]}: "
            "there is no cache yet"
        )


def _check_ratios_and_orders(ratios: tuple[Any, ...], orders: tuple[Any, ...]) -> None:
    for call, ratio in enumerate(ratios):
        number = type(ratio) is float or (isinstance(ratio, Real) and not isinstance(ratio, bool))
        if not number or not 0 <= ratio < 1:
            raise DatoError(f"schedule: ratio {ratio!r} of call {call} is not a number from 0 to below 1")
    for call, order in enumerate(orders):
        if not _is_int(order) or order not in (0, 1, 2):
            raise DatoError(f"schedule: order {order!r} of call {call} is not 0, 1 or 2")


def _sequence(name: str, value: object) -> Iterable[Any]:
    if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
        raise DatoError(f"schedule: {name} must be a list with one entry for each call, not {value!r}")
    return value


def _per_call(name: str, value: object, calls: int) -> tuple[Any, ...]:
    if isinstance(value, Real) and not isinstance(value, bool):
        return (value,) * calls
    values = tuple(_sequence(name, value))
    if len(values) != calls:
        raise DatoError(f"schedule: {name} has {len(values)} entries and depths has {calls}; they must be as many")
    return values
