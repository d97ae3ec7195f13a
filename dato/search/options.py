"""The options of a search, one dataclass for each kind. Both signatures, Python's and the command's, come from them.

The metadata of a field holds its help, its least value, and what is shown as its default. In help, shown defaults and
messages, names of other options stand in backticks. The command line writes them as its flags.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import textwrap
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dato.errors import DatoError
from dato.metrics import METRICS, OPTIONS
from dato.metrics.base import Option
from dato.pruning import SCORES, Pruning
from dato.samplers import SAMPLERS
from dato.schedule import FORECASTS
from dato.search.candidate_timing import MODES
from dato.search.presets import DATO_PRUNING, DEPTH_PRESETS, GUIDED, RATIO_PRESETS, Preset

F = TypeVar("F", bound=Callable[..., Any])
S = TypeVar("S", bound="type[SearchOptions]")
PRUNING_SETTINGS = tuple(field.name for field in fields(Pruning))


def option(
    default: Any, help: str, *, least: float | None = None, shown: str | None = None, place: bool = False
) -> Any:
    """Return a dataclass field that describes an option.

    Args:
        default: Its default.
        help: One sentence or two.
        least: The least value that is allowed.
        shown: What the default means, in words, where the value does not say it.
        place: Whether it is a file or folder if one of that name exists.
    """
    return dataclasses.field(default=default, metadata={"help": help, "least": least, "shown": shown, "place": place})


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What all searches have in common."""

    preset: str = option("quick", "quick (minutes on a CPU, embedded model) or paper (DaTo's).")
    PRESETS: ClassVar[tuple[str, ...]] = tuple(RATIO_PRESETS)

    def __post_init__(self) -> None:
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if value is None:
                continue
            least = field.metadata["least"]
            if isinstance(value, float) and not math.isfinite(value):
                raise DatoError(f"`{name}` {value}: give a finite number")
            if least is not None and value < least:
                raise DatoError(f"`{name}` {value}: it must be at least {least}")
            if field.metadata["place"]:
                object.__setattr__(self, name, place(str(value)))
            elif isinstance(value, Sequence) and not isinstance(value, str):
                object.__setattr__(self, name, tuple(value))
        if self.preset not in self.PRESETS:
            raise DatoError(f"`preset` {self.preset!r}: known are {', '.join(self.PRESETS)}")

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values, as a journal keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class CallOptions(SearchOptions):
    """What to choose from: how many calls of the UNet, how deep, and with which forecasts."""

    depths: Sequence[int] | None = option(
        None, "Depths to choose from besides the whole UNet, as in 0,1,3.", shown="the preset's"
    )
    orders: Sequence[int] | None = option(
        None, "Orders of forecasts to choose from; 0: reuse what is cached.", shown="the preset's"
    )
    forecast: str | None = option(None, f"What an order above 0 means: {', '.join(FORECASTS)}.", shown="the preset's")
    steps: Sequence[int] | None = option(
        None, "Sampler steps to choose from, as in 10,15,20,25,50.", shown="the preset's, or `reference_steps`"
    )
    reference_steps: int | None = option(
        None, "The reference is stock with this number of steps.", least=1, shown="the largest of `steps`"
    )
    scheduler: str | None = option(
        None, f"Sampler: {', '.join(SAMPLERS)}.", shown="the model's own; with `preset` paper plms"
    )
    guidance_scale: float | None = option(
        None,
        "Classifier-free guidance; 1 is off.",
        least=1,
        shown="emoji-sd: the preset's; else the papers', 7.5 and of SD 2.x 9; with `preset` paper 7.5",
    )
    height: int | None = option(None, "Image height in pixels.", least=16, shown="the model's own")
    width: int | None = option(None, "Image width in pixels.", least=16, shown="the model's own")
    warm_start: str | Path | None = option(
        None,
        "A front to begin from, as of an earlier search or of another model: a JSON file, a run's folder, a shipped "
        "one's name, or user/name on the Hugging Face hub. Its schedules are judged first.",
        place=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.warm_start is not None and self.preset == "paper":
            raise DatoError("`warm_start` does not go with `preset` paper, which begins as DaTo does")
        if self.forecast is not None and self.forecast not in FORECASTS:
            raise DatoError(f"`forecast` {self.forecast!r}: known are {', '.join(FORECASTS)}")


@dataclass(frozen=True, kw_only=True)
class FrontOptions(SearchOptions):
    """Which points of a front a search builds on."""

    pick: str | None = option(
        None,
        "Build on one point of it, as in the paper: knee, speedup=NUMBER or quality=NUMBER.",
        shown="all its points at once",
    )


@dataclass(frozen=True, kw_only=True)
class PruningOptions(SearchOptions):
    """Which tokens calls may leave out."""

    ratios: Sequence[float] | None = option(None, "Ratios to choose from, as in 0,0.3,0.5,0.7.", shown="the preset's")
    score: str | None = option(
        None, f"Base score of token pruning: {', '.join(SCORES)}.", shown="sito; with `preset` paper dato"
    )
    recover_from: str | None = option(
        None,
        "What a pruned token gets: base, kept (token's output), past (its own).",
        shown="past; with `preset` paper base",
    )
    max_downsample: int | None = option(None, "Prune at a downsampling of at most this.", least=1, shown="the smallest")
    pruning: Mapping[str, Any] | Pruning | None = option(
        None,
        f"Settings of token pruning, as in diff_gamma=0.1: {', '.join(PRUNING_SETTINGS)}.",
        shown="the preset's",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.pruning.to_dict() if isinstance(self.pruning, Pruning) else self.pruning
        if not isinstance(given, Mapping | None):
            raise DatoError("`pruning`: give settings by name, as in {'diff_gamma': 0.1}")
        for name in given or ():
            if name not in PRUNING_SETTINGS:
                raise DatoError(f"`pruning`: unknown setting {name!r}; known are {', '.join(PRUNING_SETTINGS)}")
            if self._named.get(name) is not None:
                raise DatoError(f"`{name}` is given twice: leave it out, or leave it out of `pruning`")
        object.__setattr__(self, "pruning", None if given is None else dict(given))

    @property
    def _named(self) -> dict[str, Any]:
        """The settings of token pruning that have an option of their own."""
        return {name: getattr(self, name) for name in ("score", "recover_from", "max_downsample")}

    def token_pruning(self, guidance_scale: float) -> Pruning:
        """Return the settings of token pruning that belong to the ratios.

        With the preset paper they are DaTo's (`DATO_PRUNING`). What is given replaces single settings.

        Raises:
            DatoError: if a setting is not valid, or they do not go together.
        """
        given = {name: value for name, value in self._named.items() if value is not None} | (self.pruning or {})
        guided = guidance_scale > 1
        if given.get("align_cfg") and not guided:
            raise DatoError(f"align_cfg aligns the halves of guidance, and guidance {guidance_scale:g} has none")
        if self.preset == "paper":
            start = DATO_PRUNING.to_dict() | {"align_cfg": guided}
        else:
            score = Pruning(score=given.get("score", "sito")).base_score
            start = {
                "recover_from": "past",
                # Local similarity gives nearly the same tokens in less time. It needs a score that chooses by patch.
                "similarity": "local" if score.by_patch else "global",
                # A score that is mostly random would choose differently in the two halves of guidance.
                "align_cfg": score.align_cfg and guided,
            }
        return Pruning.from_dict(start | given)


@dataclass(frozen=True, kw_only=True)
class JudgingOptions(SearchOptions):
    """How candidates are judged and varied."""

    quality: str | None = option(
        None,
        f"Objective beside latency: {', '.join(METRICS)}. All that need no extra file are recorded.",
        shown="psnr; with `preset` paper image-reward",
    )
    min_quality: float | None = option(
        None,
        "Constraint: the objective must be at least this (a distance, as frechet: at most).",
        shown="none; with `preset` paper and its metric 0",
    )
    images: int | None = option(None, "Images (prompts) for each candidate.", least=1, shown="the preset's")
    batch_size: int | None = option(
        None,
        "Images per generation; latency is per image.",
        least=1,
        shown="the preset's",
    )
    pop_size: int | None = option(None, "Population of NSGA-II.", least=2, shown="the preset's")
    generations: int | None = option(None, "Generations.", least=1, shown="the preset's")
    latency: str = option(
        "auto",
        "How candidates are timed: table (each kind of UNet call is measured once, a schedule is their sum), "
        "measured (each candidate), or auto: measured on a GPU, table on a CPU.",
    )
    rounds: int | None = option(
        None,
        "How often to time the front, references and stock again after the search, in turn.",
        least=0,
        shown="the preset's",
    )
    compile: bool = option(
        False,
        "Compile the UNet's calls with torch.compile, stock's too. Each kind of call is compiled once, which takes "
        "minutes; after that candidates cost less.",
    )
    race: int | None = option(
        None,
        "Number of images after which a surely dominated candidate is given up; 0: never.",
        least=0,
        shown="the preset's",
    )
    seed: int = option(0, "Fixes the noise of the images, and everything else that is random.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quality is not None and self.quality not in METRICS:
            raise DatoError(f"unknown quality metric {self.quality!r}; known are {', '.join(METRICS)}")
        if self.latency not in MODES:
            raise DatoError(f"`latency` {self.latency!r}: known are {', '.join(MODES)}")

    def metric_files(self, conditions: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the metrics' options as given, else as in a front's conditions."""
        values = {name: getattr(self, name) or (conditions or {}).get(name) for name in OPTIONS}
        return {name: value for name, value in values.items() if value is not None}

    def _changed(self, preset: Preset, *names: str, **changes: Any) -> Preset:
        """Return the preset with the values of these fields that the options give."""
        if self.quality not in (None, preset.quality):
            preset = dataclasses.replace(preset, min_quality=None)  # the preset's is one of its own metric
        always = "quality", "min_quality", "images", "pop_size", "generations", "race", "rounds"
        changes |= {name: getattr(self, name) for name in (*always, *names)}
        return dataclasses.replace(preset, **{key: value for key, value in changes.items() if value is not None})


def metric_options(declared: Mapping[str, Option]) -> type:
    """Return a dataclass with a field for each of these options, which the metrics declare themselves."""
    fields = [
        (
            metric.name,
            "str | Path | None" if metric.is_path else "str | None",
            option(None, metric.help, shown=metric.shown_default or metric.default, place=metric.is_path),
        )
        for metric in declared.values()
    ]
    made = dataclasses.make_dataclass("MetricOptions", fields, frozen=True, kw_only=True)
    made.__module__ = __name__  # the module in which the types of its fields are looked up
    return made


MetricOptions = metric_options(OPTIONS)


@dataclass(frozen=True, kw_only=True)
class GuidedOptions(SearchOptions):
    """How long a guided search takes, and where it looks."""

    preset: str = option(
        "fast",
        "fast (five minutes on two CPU cores, embedded model), thorough (with time), quick (generations of NSGA-II "
        "only) or paper (DaTo's).",
    )
    minutes: float | None = option(
        None, "How long the search may take; fast and thorough only.", least=0.1, shown="the preset's: 5, 40"
    )
    speedups: Sequence[float] | None = option(
        None, "Lowest and highest speed-up to search; fast and thorough only.", shown="2,16"
    )
    validation: int | None = option(
        None,
        "Prompts by which the front is validated in the end. No candidate is judged by them before.",
        least=2,
        shown="the preset's; fast 12, thorough 30",
    )
    PRESETS: ClassVar[tuple[str, ...]] = tuple(DEPTH_PRESETS)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.speedups is not None and not (len(self.speedups) == 2 and 1 <= self.speedups[0] < self.speedups[1]):
            raise DatoError(f"`speedups` {self.speedups}: give the lowest and the highest, as in 2,16")
        if self.preset not in GUIDED:
            for name in ("minutes", "speedups", "validation"):
                if getattr(self, name) is not None:
                    raise DatoError(f"`{name}` belongs to `preset` {' or '.join(GUIDED)}, not to {self.preset}")
        else:
            for name in ("pop_size", "generations"):
                if getattr(self, name, None) is not None:
                    raise DatoError(f"`{name}` belongs to `preset` quick or paper; {self.preset} goes by `minutes`")


@dataclass(frozen=True, kw_only=True)
class DepthSearch(GuidedOptions, MetricOptions, JudgingOptions, CallOptions):
    """Options of a search of cache depths."""

    def settings(self) -> Preset:
        """Return the preset as the options change it."""
        preset = DEPTH_PRESETS[self.preset]
        numbers = {name: _ascending(getattr(self, name)) for name in ("steps", "orders")}
        if self.reference_steps and preset.minutes is not None and len(preset.steps) == 1:
            numbers["steps"] = numbers["steps"] or (self.reference_steps,)
        changed = "depths", "forecast", "guidance_scale", "minutes", "speedups", "validation"
        return self._changed(preset, *changed, **numbers)


@dataclass(frozen=True, kw_only=True)
class JointSearch(MetricOptions, JudgingOptions, PruningOptions, CallOptions):
    """Options of a search of cache depths and prune ratios together."""

    def settings(self) -> Preset:
        """Return the preset of depths with the ratios of that of ratios, as the options change it."""
        numbers = {name: _ascending(getattr(self, name)) for name in ("steps", "orders")}
        preset = dataclasses.replace(DEPTH_PRESETS[self.preset], ratios=RATIO_PRESETS[self.preset].ratios)
        return self._changed(preset, "depths", "ratios", "forecast", "guidance_scale", **numbers)


@dataclass(frozen=True, kw_only=True)
class RatioSearch(MetricOptions, JudgingOptions, PruningOptions, FrontOptions):
    """Options of a search of prune ratios on top of a front."""

    quality: str | None = option(
        None, "Objective beside latency.", shown="the front's; with `preset` paper image-reward"
    )
    batch_size: int | None = option(None, "Images per generation.", least=1, shown="the front's")

    def settings(self) -> Preset:
        """Return the preset as the options change it."""
        return self._changed(RATIO_PRESETS[self.preset], "ratios")


AnySearch = DepthSearch | JointSearch | RatioSearch


def place(name: str) -> str:
    """Return a file's or folder's whole path, so that it is found from anywhere; other names stay as they are."""
    path = Path(name)
    if path.is_file():  # a link keeps its name: what the hub's cache links to has no suffix
        return str(path.parent.resolve() / path.name)
    return str(path.resolve()) if path.exists() else name


def annotations(options: S) -> dict[str, Any]:
    """Return the types of a dataclass's fields by name."""
    hints = typing.get_type_hints(options)
    return {field.name: hints[field.name] for field in fields(options)}


def takes(options: S) -> Callable[[F], F]:
    """Give a function that ends in `**options` the fields of a dataclass as keyword arguments.

    The signature shows them, and the docstring describes them where it says `{options}`.
    """

    def decorate(function: F) -> F:
        hints = annotations(options)
        keywords = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=hints[f.name])
            for f in fields(options)
        ]
        assert all(keyword.default is not MISSING for keyword in keywords)
        plain = inspect.signature(function)
        before = [p for p in plain.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        signature = plain.replace(parameters=[*before, *keywords])

        @functools.wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            signature.bind(*arguments, **named)  # a TypeError names this function, not the dataclass
            return function(*arguments, **named)

        checked.__signature__ = signature
        checked.__doc__ = inspect.cleandoc(function.__doc__ or "").replace("{options}", _described(options))
        return checked

    return decorate


def _described(options: type[SearchOptions]) -> str:
    """Return the lines of a docstring's section Args for all fields."""
    lines = []
    for field in fields(options):
        shown = field.metadata["shown"]
        text = f"{field.name}: {field.metadata['help']}" + (f" Default: {shown}." if shown else "")
        lines += textwrap.wrap(text, 116, initial_indent="    ", subsequent_indent="        ")
    return "\n".join(lines)


def _ascending(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(sorted(set(numbers)))
