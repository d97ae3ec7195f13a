"""Simulations of schedules with an error model."""

from dataclasses import replace

import numpy as np
import pytest
from error_models import random_model

from dato.errors import DatoError
from dato.prediction.error_model_file import sensitivity_from_dict, sensitivity_to_dict
from dato.prediction.error_simulation import FIRST_GAP, FIRST_HALF, Simulation
from dato.schedule import Schedule

CALLS = 6


@pytest.fixture
def model():
    """A model of two images, whose network reacts."""
    rng = np.random.default_rng(1)
    latents = np.tril(rng.normal(size=(CALLS + 1, CALLS)), -1)
    reactions = np.column_stack([rng.normal(size=(CALLS, 2)), rng.random((CALLS, 2))])
    return replace(random_model(), weights=latents[-1], images=2, latents=latents, reactions=reactions)


def deviations_by_hand(model, schedule, stale=1.0, begun=None):
    """Return the deviation of each prediction and of the final latent, call by call.

    Args:
        stale: A factor for the errors E.
        begun: A call whose prediction deviates by 1, in every number, on top of all else.
    """
    calls, deviations, inputs, last = schedule.calls(model.times), np.zeros_like(model.predictions), {}, 0
    inputs[0] = np.zeros_like(deviations[0])
    for call in calls:
        t = call.index
        if call.depth == model.rungs and t:
            a, b, c, _ = model.reactions[t]
            kept, inputs[t] = c ** (t - last), model.latents[t, :t] @ deviations[:t]
            deviations[t] = b * (inputs[t] - inputs[last]) + kept * deviations[last] + (1 - kept) * a * inputs[last]
            last = t
        elif t:
            sources = call.sources[-call.order - 1 :]
            times = [model.times[s] for s in sources]
            for i, source in enumerate(sources):
                others = [u for j, u in enumerate(times) if j != i]
                weight = np.prod([(model.times[t] - u) / (times[i] - u) for u in others])
                deviations[t] += weight * (stale * model.stale[call.depth][t, source] + deviations[source])
        if t == begun:
            deviations[t] += 1
    return deviations, model.latents[-1] @ deviations


def by_hand(model, schedule):
    """Simulate one schedule, as the docstring of the module says."""
    deviations, final = deviations_by_hand(model, schedule)
    whole = [t for t in range(1, CALLS) if schedule.depths[t] == model.rungs]
    carried = {t: deviations_by_hand(model, schedule, stale=0.0, begun=t) for t in whole}
    unknown = {}
    for t in whole:
        size = np.square(deviations[t].reshape(2, -1)).sum(axis=1)
        size = size + sum(carried[s][0][t, 0] ** 2 * unknown[s] for s in unknown)
        unknown[t] = model.reactions[t, 3] ** 2 * size
    added = sum((carried[t][1][0] ** 2 * unknown[t] for t in whole), np.zeros(2))
    return np.square(final.reshape(2, -1)).sum(axis=1), added


SCHEDULES = [
    Schedule([3, 0, 0, 3, 0, 0], orders=0, rungs=3),
    Schedule([3, 3, 0, 1, 0, 3], orders=1, rungs=3),
    Schedule([3, 1, 3, 0, 1, 0], orders=[0, 0, 0, 1, 1, 0], rungs=3),
    Schedule([3, 3, 3, 3, 1, 0], orders=2, rungs=3),
    Schedule.full(CALLS, rungs=3),
]


WHOLE = Schedule.full(CALLS, rungs=3)
# The same schedules with whole calls from the second whole call on, and from the middle on.
BEGINNINGS = [
    (Schedule([3, 0, 0, 3, 3, 3], rungs=3), Schedule([3, 0, 0, 3, 3, 3], rungs=3)),
    (WHOLE, Schedule([3, 3, 0, 3, 3, 3], orders=1, rungs=3)),
    (Schedule([3, 1, 3, 3, 3, 3], rungs=3), Schedule([3, 1, 3, 3, 3, 3], rungs=3)),
    (WHOLE, WHOLE),
    (WHOLE, WHOLE),
]


def test_simulations_together_are_those_of_each_and_as_by_hand(model):
    predicted = Simulation(model)(SCHEDULES)
    for row, schedule in enumerate(SCHEDULES):
        errors, reactions = by_hand(model, schedule)
        assert np.allclose(predicted.errors[row], errors, rtol=1e-4, atol=1e-6)
        assert np.allclose(predicted.reactions[row], reactions, rtol=1e-4, atol=1e-6)
        early = sum(
            weight * np.add(*by_hand(model, s))
            for weight, s in zip((FIRST_GAP, FIRST_HALF), BEGINNINGS[row], strict=True)
        )
        assert np.allclose(predicted.early[row], early, rtol=1e-4, atol=1e-6)
    counted = predicted.errors + predicted.reactions + predicted.early
    decibels = -10 * np.log10(counted[:4]).mean(axis=1)
    assert np.allclose(predicted.decibels[:4], decibels, rtol=1e-5)
    assert predicted.decibels[4] == pytest.approx(100)  # stock has no error


@pytest.mark.parametrize(
    "times", [(9.0, 5.0, 7.0, 5.0, 3.0, 1.0), (9.0, 7.0, 5.0, 5.0, 9.0, 7.0), (1.0, 3.0, 5.0, 7.0, 9.0, 11.0)]
)
def test_timesteps_that_turn_round_are_simulated_as_they_run(model, times):
    turning = replace(model, times=times)
    predicted = Simulation(turning)(SCHEDULES)
    for row, schedule in enumerate(SCHEDULES):
        assert np.allclose(predicted.errors[row], by_hand(turning, schedule)[0], rtol=1e-4, atol=1e-6)


def test_the_model_of_an_earlier_version_is_refused():
    with pytest.raises(DatoError, match="earlier dato"):
        Simulation(random_model())


def test_ratios_add_their_errors_and_what_is_not_covered_is_refused(model):
    pruned = replace(model, pruned={(1, 0.5): np.ones((CALLS, 8)), (3, 0.5): np.ones((CALLS, 8))})
    plain = SCHEDULES[1]
    with_ratio = plain.with_ratios([0, 0.5, 0, 0.5, 0, 0])
    simulation = Simulation(pruned)
    assert not np.allclose(simulation([with_ratio]).errors, simulation([plain]).errors)
    for schedule, message in [
        (Schedule.full(7, rungs=3), "6 calls"),
        (Schedule([3, 2, 3, 3, 3, 3], rungs=3), "depth 2"),
        (plain.with_ratios([0, 0.25, 0, 0, 0, 0]), r"ratio 0\.25"),
        (Schedule([3, 3, 0, 0, 0, 0], orders=1, rungs=3, forecast="chebyshev"), "reads all of the past"),
    ]:
        with pytest.raises(DatoError, match=message):
            simulation([schedule])


def test_models_of_several_images_are_read_as_they_were_written(model):
    again = sensitivity_from_dict(sensitivity_to_dict(model))
    assert again.images == 2 and np.allclose(again.latents, model.latents)
    assert np.allclose(again.reactions, model.reactions)
    assert np.allclose(Simulation(again)(SCHEDULES).decibels, Simulation(model)(SCHEDULES).decibels, rtol=1e-2)
    old = sensitivity_to_dict(random_model())
    del old["images"], old["latents"], old["reactions"]
    assert sensitivity_from_dict(old).images == 1
    with pytest.raises(DatoError, match="one of `latents` and `reactions`"):
        sensitivity_from_dict({**sensitivity_to_dict(model), "reactions": None})
    with pytest.raises(DatoError, match="one block for each image"):
        sensitivity_from_dict({**sensitivity_to_dict(model), "images": 3})
