"""Other packages' methods: they do what they say within the block, and nothing after it."""

import sys

import pytest
import torch
from conftest import draw
from which_tests import thorough

import dato
from dato.evaluation.methods import as_method, deepcache_method, schedule_method, stock_method, tomesd_method

STEPS = 6
SCHEDULE = dato.Schedule.full(STEPS + 1)
CALLS = STEPS + 1
PACKAGES = {"tomesd": lambda: tomesd_method(0.5, SCHEDULE), "DeepCache": lambda: deepcache_method(3, 0, CALLS, 12)}


def state(pipe):
    """What runs when a module is called: its class, a forward of its own, its hooks."""
    modules = pipe.unet.modules()
    return [(type(m), "forward" in m.__dict__, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]


@pytest.mark.parametrize("package", PACKAGES)
def test_after_the_block_the_pipeline_is_stock(pipe, package):
    method, before, stock = PACKAGES[package](), state(pipe), draw(pipe, STEPS)
    for _ in range(2):
        with method.apply(pipe):
            assert not torch.equal(draw(pipe, STEPS), stock)
        assert state(pipe) == before
        assert torch.equal(draw(pipe, STEPS), stock)


@pytest.mark.parametrize("package", PACKAGES)
def test_also_when_a_generation_breaks_off(pipe, package):
    def stop(pipe, step, timestep, values):
        raise KeyboardInterrupt

    method, before, stock = PACKAGES[package](), state(pipe), draw(pipe, STEPS)
    with pytest.raises(KeyboardInterrupt), method.apply(pipe):
        draw(pipe, STEPS, callback_on_step_end=stop)
    assert state(pipe) == before
    assert torch.equal(draw(pipe, STEPS), stock)


@pytest.mark.parametrize(("interval", "branch"), [(3, 1), *thorough((2, 0), (3, 10))])
def test_deep_cache_is_a_uniform_schedule(pipe, interval, branch):
    method = deepcache_method(interval, branch, CALLS, 12)
    assert method.name == f"DeepCache (package) N={interval} d={branch + 1}" and not method.predictable
    assert method.schedule == dato.Schedule.uniform(CALLS, interval, branch + 1)
    depths = list(dato.Schedule.uniform(STEPS + 1, interval, branch + 1).depths)
    depths[2] = branch + 1  # PLMS: the same timestep as call 1, so the package takes it for that
    for seed in (0, 1):  # nothing of one generation is in the next
        with method.apply(pipe):
            theirs = draw(pipe, STEPS, seed=seed)
        with dato.patched(pipe, dato.Schedule(depths)):
            assert torch.equal(draw(pipe, STEPS, seed=seed), theirs)


def test_a_forward_that_was_there_is_there_again(pipe):
    resnet = pipe.unet.mid_block.resnets[0]
    resnet.forward = own = resnet.forward
    with deepcache_method(2, 0, CALLS, 12).apply(pipe):
        pass
    assert resnet.__dict__.pop("forward") is own


def test_deep_cache_of_another_kind_is_an_error():
    for interval, branch in [(0, 0), (2, -1), (2, 11)]:
        with pytest.raises(dato.DatoError, match="branch from 0 to 10"):
            deepcache_method(interval, branch, CALLS, 12)


def test_without_its_package_there_is_no_method(monkeypatch):
    monkeypatch.setitem(sys.modules, "DeepCache", None)
    monkeypatch.setitem(sys.modules, "tomesd", None)
    assert [make() for make in PACKAGES.values()] == [None, None]


def test_a_schedule_is_a_method_of_ours(pipe):
    shallow = dato.Schedule.uniform(CALLS, 3, 1)
    method = as_method(shallow)
    assert as_method(method) is method and method == as_method(shallow)
    assert method.predictable and method.identity == schedule_method(shallow, "another name").identity
    assert method.identity != as_method(SCHEDULE).identity
    with method.apply(pipe):
        ours = draw(pipe, STEPS)
    with dato.patched(pipe, shallow):
        assert torch.equal(draw(pipe, STEPS), ours)


def test_whole_calls_run_unpatched(pipe):
    before = state(pipe)
    for method in (stock_method(SCHEDULE), schedule_method(SCHEDULE)):
        with method.apply(pipe):
            assert state(pipe) == before


def test_methods_of_a_package_are_equal_by_what_they_do():
    one, other = PACKAGES["tomesd"](), PACKAGES["tomesd"]()
    assert one == other and hash(one) == hash(other) and one.identity == other.identity
    assert tomesd_method(0.3, SCHEDULE).identity != one.identity != as_method(SCHEDULE).identity
