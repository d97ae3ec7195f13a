"""The settings of the SiTo paper's tables and figures in one table with their sources (Zhang et al., AAAI 2025)."""

import pytest

import dato
from dato import Pruning, Schedule
from dato.evaluation.pool import Facts
from dato.experiments.method_families import FAMILIES, families_of

CALLS, STEPS = 51, 50  # PLMS
FACTS = Facts(
    12,
    CALLS,
    {steps: steps + 1 for steps in (STEPS, 25, 20, 15, 10)},
    "PNDMScheduler",
    "plms",
    (512, 512),
    (1, 2, 4, 8),
    "CPU",
)
PAPERS = {"shared": False}  # every block chooses


def methods(name):
    """The methods of a family by name, those of ToMeSD's package apart."""
    [every] = families_of([name], FACTS).values()
    ours = {method.name: method for method in every if method.version is None}
    return ours, [method.name for method in every if method.version is not None]


def pruned(ratio, calls=CALLS, **settings):
    return Schedule([12] * calls, ratio, pruning=Pruning(**PAPERS, **settings))


# Family, what our rows compute, in the paper's order, and ToMeSD's rows.
TABLES = {
    # Table 1, SiTo-a to SiTo-e.
    "sito": ([pruned(ratio) for ratio in (0.3, 0.4, 0.5, 0.6, 0.7)], []),
    # Table 2: SiTo-b, and which layers leave tokens out.
    "layers": (
        [
            pruned(0.4, self_attention=attn1, cross_attention=attn2, feed_forward=ff)
            for attn1, attn2, ff in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (1, 1, 1)]
            for attn1, attn2, ff in [map(bool, (attn1, attn2, ff))]
        ],
        [],
    ),
    # Table 3: SiTo-b, base tokens by methods I to VI, and ToMeSD.
    "base-tokens": ([pruned(0.4, score=row) for row in ("I", "II", "III", "IV", "V", "VI")], ["ToMeSD 40%"]),
    # Figure 5a: pruned or merged.
    "reduction": (
        [pruned(ratio, reduction=kind) for kind in ("prune", "merge") for ratio in (0.3, 0.4, 0.5, 0.6, 0.7)],
        [],
    ),
    # Figure 5b: the size of a patch; half of all tokens, the most that patches of two leave.
    "patch-size": ([pruned(0.5, sy=sy, sx=sx) for sy, sx in [(1, 2), (2, 2), (2, 4), (4, 4), (8, 8)]], []),
    # Figure 7: blocks of lower resolutions, and ToMeSD's.
    "deeper-blocks": (
        [pruned(0.5, max_downsample=factor) for factor in (1, 2, 4, 8)],
        [f"ToMeSD 50% to downsampling {factor}" for factor in (1, 2, 4, 8)],
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_rows_are_the_papers(name):
    expected, theirs = TABLES[name]
    found, packages = methods(name)
    assert [method.schedule for method in found.values()] == expected and packages == theirs


def test_figure_6_has_fewer_steps_with_and_without_pruning():
    found, theirs = methods("sito-steps")
    expected = {"50 steps, 50% pruned": pruned(0.5)}
    for steps in (25, 20, 15, 10):
        expected[f"{steps} steps"] = Schedule.full(steps + 1)
        expected[f"{steps} steps, 50% pruned"] = pruned(0.5, steps + 1)
    assert {name: method.schedule for name, method in found.items()} == expected
    assert theirs == [f"{steps} steps, ToMeSD 50%" for steps in (50, 25, 20, 15, 10)]


def test_rows_are_called_what_they_are():
    assert list(methods("sito")[0]) == ["SiTo-a 30%", "SiTo-b 40%", "SiTo-c 50%", "SiTo-d 60%", "SiTo-e 70%"]
    assert list(methods("reduction")[0])[4:6] == ["prune 70%", "merge 30%"]
    assert list(methods("patch-size")[0])[2] == "patch 2 x 4"
    [theirs] = families_of(["tomesd"], FACTS).values()
    assert [m.name for m in theirs] == [
        f"ToMeSD-{name} {r}%" for name, r in zip("abcde", range(30, 80, 10), strict=True)
    ]
    assert {"sito", "dato", "layers", "base-tokens", "sito-steps", "deeper-blocks"} <= set(FAMILIES)


def test_other_methods_are_as_published():
    """DeepCache (Ma et al., CVPR 2024) and Spectrum (Han et al., CVPR 2026): windows of 2 and more calls after five."""
    found, _ = methods("deepcache")
    settings = [(2, 1), (2, 3), (3, 0), (3, 1), (5, 0), (5, 1), (7, 1), (10, 0)]
    assert {name: method.schedule for name, method in found.items()} == {
        f"DeepCache N={n} d={depth}": Schedule([12 if call % n == 0 else depth for call in range(CALLS)])
        for n, depth in settings
    }
    found, _ = methods("spectrum")
    for name, growth in (("Spectrum", 0.75), ("Spectrum, windows +3", 3.0)):
        depths, window = [12] * 5, 2.0
        while len(depths) < CALLS:
            depths += [0] * (int(window) - 1) + [12]
            window += growth
        assert found[name].schedule == Schedule(depths[:CALLS], orders=1, forecast="chebyshev")
    found, _ = methods("dato")
    assert found["DaTo's vector"].schedule == dato.strategies.load_strategy("dato-published")
