"""What a front's conditions say of how its times were found."""

from types import SimpleNamespace

import pytest

from dato.search.candidate_timing import HOW
from dato.search.prepare import PreparedSearch


@pytest.mark.parametrize(
    ("timing", "validation", "rounds", "name"),
    [
        ("measured", (), 2, "measured"),
        ("measured", ("a rose",), 0, "validated"),
        ("measured", ("a rose",), 2, "validated again"),  # thorough on a GPU
        ("table", ("a rose",), 0, "predicted"),  # fast on a CPU
        ("table", ("a rose",), 2, "table"),
        ("table", (), 2, "table"),
    ],
)
def test_times_are_what_was_done(timing, validation, rounds, name):
    search = SimpleNamespace(
        timing=timing, recipe=SimpleNamespace(validation=validation), preset=SimpleNamespace(rounds=rounds)
    )
    assert PreparedSearch._how_timed.fget(search) == name
    assert ("timed in turn" in HOW[name]) == bool(rounds) and ("latency_table" in HOW[name]) == (timing == "table")
