"""Other packages' methods: they do what they say within the block, and nothing after it."""

import sys

import pytest
import torch
from conftest import draw

import dato
from dato.evaluation.methods import deepcache_peer, tomesd_peer

STEPS = 6
SCHEDULE = dato.Schedule.full(STEPS + 1)
PEERS = {"tomesd": lambda: tomesd_peer(0.5, SCHEDULE), "DeepCache": lambda: deepcache_peer(3, 0, SCHEDULE)}


def state(pipe):
    """What runs when a module is called: its class, a forward of its own, its hooks."""
    modules = pipe.unet.modules()
    return [(type(m), "forward" in m.__dict__, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]


@pytest.mark.parametrize("peer", PEERS)
def test_after_the_block_the_pipeline_is_stock(pipe, peer):
    peer, before, stock = PEERS[peer](), state(pipe), draw(pipe, STEPS)
    for _ in range(2):
        with peer.apply(pipe):
            assert not torch.equal(draw(pipe, STEPS), stock)
        assert state(pipe) == before
        assert torch.equal(draw(pipe, STEPS), stock)


@pytest.mark.parametrize("peer", PEERS)
def test_also_when_a_generation_breaks_off(pipe, peer):
    def stop(pipe, step, timestep, values):
        raise KeyboardInterrupt

    peer, before, stock = PEERS[peer](), state(pipe), draw(pipe, STEPS)
    with pytest.raises(KeyboardInterrupt), peer.apply(pipe):
        draw(pipe, STEPS, callback_on_step_end=stop)
    assert state(pipe) == before
    assert torch.equal(draw(pipe, STEPS), stock)


@pytest.mark.parametrize(("interval", "branch"), [(2, 0), (3, 1), (3, 10)])
def test_deep_cache_is_a_uniform_schedule(pipe, interval, branch):
    peer = deepcache_peer(interval, branch, SCHEDULE)
    assert peer.name == f"DeepCache (package) N={interval} d={branch + 1}" and peer.schedule == SCHEDULE
    depths = list(dato.Schedule.uniform(STEPS + 1, interval, branch + 1).depths)
    depths[2] = branch + 1  # PLMS: the same timestep as call 1, so the package takes it for that
    for seed in (0, 1):  # nothing of one generation is in the next
        with peer.apply(pipe):
            theirs = draw(pipe, STEPS, seed=seed)
        with dato.patched(pipe, dato.Schedule(depths)):
            assert torch.equal(draw(pipe, STEPS, seed=seed), theirs)


def test_a_forward_that_was_there_is_there_again(pipe):
    resnet = pipe.unet.mid_block.resnets[0]
    resnet.forward = own = resnet.forward
    with deepcache_peer(2, 0, SCHEDULE).apply(pipe):
        pass
    assert resnet.__dict__.pop("forward") is own


def test_deep_cache_of_another_kind_is_an_error():
    for interval, branch in [(0, 0), (2, -1), (2, 11)]:
        with pytest.raises(dato.DatoError, match="branch from 0 to 10"):
            deepcache_peer(interval, branch, SCHEDULE)


def test_without_its_package_there_is_no_peer(monkeypatch):
    monkeypatch.setitem(sys.modules, "DeepCache", None)
    monkeypatch.setitem(sys.modules, "tomesd", None)
    assert [make() for make in PEERS.values()] == [None, None]
