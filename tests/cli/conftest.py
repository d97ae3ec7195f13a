"""What the tests of the commands share."""

from functools import partial

import pytest

from dato.prediction.latency_measure import measure_table


@pytest.fixture(autouse=True)
def one_round_of_measuring(monkeypatch):
    """Measure latency tables in one round: the commands' tests look at what is done, not at times."""
    monkeypatch.setattr("dato.search.study.measure_table", partial(measure_table, rounds=1))
