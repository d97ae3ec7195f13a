"""The ablations of the SiTo paper (Zhang et al., AAAI 2025), each a family of methods.

All calls run the whole UNet with SiTo's settings, except for the one setting that is varied. Tables 2 and 3 are of
SiTo-b, the figures of RATIO. ToMeSD is beside SiTo where the paper has it, if its package is installed. The paper's row
"Origin" is stock, which every evaluation has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dato.evaluation.methods import Method, named_methods, tomesd_method
from dato.pruning import PAPER_RATIOS, SITO_PRUNING
from dato.schedule import Schedule

if TYPE_CHECKING:
    from dato.evaluation.pool import Facts

RATIO = 0.5  # of the figures, but for the one of the ratio
TABLES_RATIO = PAPER_RATIOS["b"]  # of tables 2 and 3
LAYERS = {
    "self-attention": (True, False, False),
    "cross-attention": (False, True, False),
    "feed-forward": (False, False, True),
    "self- and cross-attention": (True, True, False),
    "self-attention and feed-forward": (True, False, True),
    "all three": (True, True, True),
}
BASE_TOKENS = {
    "I": "top left of each patch",
    "II": "a random quarter",
    "III": "the quarter with the highest SimScore",
    "IV": "random in each patch",
    "V": "highest SimScore in each patch",
    "VI": "the same with noise",
}
PATCHES = ((1, 2), (2, 2), (2, 4), (4, 4), (8, 8))
STEPS = (1.0, 0.5, 0.4, 0.3, 0.2)  # shares of the reference's


def _stock(facts: Facts, steps: int | None = None) -> Schedule:
    calls = facts.calls if steps is None else facts.calls_of[steps]
    return Schedule.full(calls, rungs=facts.rungs)


def _whole(facts: Facts, ratio: float = RATIO, steps: int | None = None, **settings: Any) -> Schedule:
    return replace(_stock(facts, steps), pruning=replace(SITO_PRUNING, **settings)).with_ratios(ratio)


def _installed(*methods: Method | None) -> list[Method]:
    return [method for method in methods if method is not None]


def layers(facts: Facts) -> list[Method]:
    """Return table 2: which layers of a transformer block leave tokens out."""
    keys = ("self_attention", "cross_attention", "feed_forward")
    flags_of = {name: dict(zip(keys, flags, strict=True)) for name, flags in LAYERS.items()}
    return named_methods({f"pruned: {name}": _whole(facts, TABLES_RATIO, **flags) for name, flags in flags_of.items()})


def base_tokens(facts: Facts) -> list[Method]:
    """Return table 3: how base tokens are chosen, methods I to VI, and ToMeSD."""
    ours = {f"base tokens {row}: {what}": _whole(facts, TABLES_RATIO, score=row) for row, what in BASE_TOKENS.items()}
    return named_methods(ours) + _installed(tomesd_method(TABLES_RATIO, _stock(facts)))


def reduction(facts: Facts) -> list[Method]:
    """Return figure 5a: tokens pruned, or merged into their base tokens."""
    return named_methods(
        {
            f"{name} {ratio:.0%}": _whole(facts, ratio, reduction=name)
            for name in ("prune", "merge")
            for ratio in PAPER_RATIOS.values()
        }
    )


def patch_size(facts: Facts) -> list[Method]:
    """Return figure 5b: the size of the patches that give one base token each. Larger ones leave fewer base tokens."""
    # With patches of two tokens half of all tokens are base tokens, so no more than half can be pruned.
    return named_methods({f"patch {sy} x {sx}": _whole(facts, RATIO, sy=sy, sx=sx) for sy, sx in PATCHES})


def fewer_steps(facts: Facts) -> list[Method]:
    """Return figure 6: fewer steps, with and without pruning, and with ToMeSD."""
    reference = facts.steps_of[facts.calls]
    # The reference may be too short for some shares.
    every = [steps for steps in (round(share * reference) for share in STEPS) if steps in facts.calls_of]
    schedules = {}
    for steps in every:
        if steps != reference:
            schedules[f"{steps} steps"] = _stock(facts, steps)
        schedules[f"{steps} steps, {RATIO:.0%} pruned"] = _whole(facts, steps=steps)
    theirs = _installed(*(tomesd_method(RATIO, _stock(facts, steps), steps=steps) for steps in every))
    return named_methods(schedules) + [
        replace(method, name=f"{method.steps} steps, {method.name}") for method in theirs
    ]


def deeper_blocks(facts: Facts) -> list[Method]:
    """Return figure 7: blocks at lower resolutions prune, too, and merge with ToMeSD."""
    factors = facts.downsamplings
    ours = {f"pruned to downsampling {factor}": _whole(facts, max_downsample=factor) for factor in factors}
    theirs = (tomesd_method(RATIO, _stock(facts), max_downsample=factor) for factor in factors)
    return named_methods(ours) + _installed(*theirs)


ABLATIONS: dict[str, Callable[[Facts], list[Method]]] = {
    "layers": layers,
    "base-tokens": base_tokens,
    "reduction": reduction,
    "patch-size": patch_size,
    "sito-steps": fewer_steps,
    "deeper-blocks": deeper_blocks,
}
