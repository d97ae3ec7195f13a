"""A generation's state is its own: beside other calls of a step, other pipelines and other threads."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs
from devices import device, put
from which_tests import thorough

import dato
from dato import Schedule
from dato.samplers import set_scheduler
from dato.unet.generation import MOST_GENERATIONS, MOST_LANES

SCHEDULE = Schedule([12, 1, 0, 3, 12, 0, 2, 1], orders=[0, 0, 0, 1, 0, 1, 1, 0])
STEPS = torch.arange(990, 190, -100)
SPELLINGS = {
    "views": lambda: list(STEPS.to(device())),
    "numbers": STEPS.tolist,
    "copies": lambda: [t.clone() for t in STEPS.to(device())],
}


def randn(*size, seed=0):
    return put(torch.randn(*size, generator=torch.Generator().manual_seed(seed)))


def texts(count=2):
    return [randn(1, 7, tiny_unet().config.cross_attention_dim, seed=seed) for seed in range(count)]


def counted(unet):
    """The depths of the calls that run from now on."""
    depths, ladder = [], unet._dato_patch.ladder
    run = ladder.run
    ladder.run = lambda depth, *args, **kwargs: depths.append(depth) or run(depth, *args, **kwargs)
    return depths


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("rule", ["polynomial", *thorough("aligned", "chebyshev")])
def test_guidance_in_two_calls_equals_guidance_in_one(spelling, rule):
    """Each of a step's calls has a cache of its own, so both get the speed-up."""
    schedule = Schedule(SCHEDULE.depths, None, SCHEDULE.orders, forecast=rule)
    unet = dato.apply_patch(tiny_unet(), schedule)
    text = texts()
    x = [randn(1, 4, 16, 16, seed=10 + step) for step in range(len(STEPS))]
    with torch.no_grad():
        together = [
            unet(torch.cat([latent] * 2), t, torch.cat(text)).sample
            for latent, t in zip(x, SPELLINGS["views"](), strict=True)
        ]
        depths = counted(unet)
        apart = []
        for latent, t in zip(x, SPELLINGS[spelling](), strict=True):
            apart.append(torch.cat([unet(latent, t, one).sample for one in text]))
    assert depths == [depth for depth in schedule.depths for _ in text]
    for a, b in zip(apart, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_texts_made_anew_and_calls_in_another_order_find_their_lane(spelling):
    unet, text = tiny_unet(), texts(3)
    x = randn(1, 4, 16, 16)

    def steps(order):
        results = {}
        with torch.no_grad():
            for step, t in enumerate(SPELLINGS[spelling]()):
                for number in order(step):
                    results[step, number] = unet(x, t, text[number].clone()).sample
        return results

    dato.apply_patch(unet, SCHEDULE)
    straight = steps(lambda step: (0, 1, 2))
    turned = steps(lambda step: (0, 1, 2) if step == 0 else (2, 0, 1) if step % 2 else (1, 2, 0))
    assert straight.keys() == turned.keys()
    assert all(torch.equal(straight[key], turned[key]) for key in straight)


def test_another_text_at_the_same_place_runs_whole():
    unet = dato.apply_patch(tiny_unet(), SCHEDULE)
    depths, text = counted(unet), texts(4)
    x = randn(1, 4, 16, 16)
    with torch.no_grad():
        for t in SPELLINGS["views"]()[:2]:
            for one in text[:2]:
                unet(x, t, one)
        for one in text[2:]:
            unet(x, SPELLINGS["views"]()[2], one)
    assert depths[:4] == [12, 12, 1, 1] and depths[4:] == [12, 12]


def test_tiles_find_the_cache_of_their_own_tile():
    """Tiles of one prompt have the same text. Each goes on with the nearest latents."""
    unet, text = tiny_unet(), texts(1)[0]
    tiles = [randn(1, 4, 16, 16, seed=seed) for seed in range(3)]
    dato.apply_patch(unet, SCHEDULE)
    alone = []
    for tile in tiles:
        with torch.no_grad():
            alone.append([unet(tile * (1 - 0.05 * i), t, text).sample for i, t in enumerate(STEPS.to(device()))])
    depths = counted(unet)
    timesteps = STEPS.to(device())
    with torch.no_grad():
        for step, t in enumerate(timesteps):
            for number in range(3):
                ours = unet(tiles[number] * (1 - 0.05 * step), t, text).sample
                assert torch.equal(ours, alone[number][step]), (step, number)
    assert depths == [depth for depth in SCHEDULE.depths for _ in tiles]


def test_more_calls_of_a_step_than_lanes_run_whole():
    unet, text = dato.apply_patch(tiny_unet(), Schedule([12, 1])), texts(1)[0]
    depths, tiles = counted(unet), [randn(1, 4, 16, 16, seed=seed) for seed in range(MOST_LANES + 2)]
    with torch.no_grad():
        for t in STEPS[:2].clone().to(device()):
            for tile in tiles:
                unet(tile, t, text)
    assert depths == [12] * len(tiles) + [1] * MOST_LANES + [12] * 2


def test_one_timestep_for_each_image_runs_whole_and_touches_no_cache():
    unet = tiny_unet()
    x, text = unet_inputs()
    many = torch.tensor([5, 435], device=device())
    with torch.no_grad():
        stock = unet(x, many, text).sample
        schedule = Schedule(SCHEDULE.depths, [0.5] * 8, SCHEDULE.orders)
        dato.apply_patch(unet, schedule)
        alone = [unet(x, t, text).sample for t in STEPS.to(device())]
        timesteps = STEPS.to(device())
        for t, expected in zip(timesteps, alone, strict=True):
            assert torch.equal(unet(x, t, text).sample, expected)
            assert torch.equal(unet(x, many, text).sample, stock)
        for t, expected in zip(timesteps.clone(), alone, strict=True):  # all images at one timestep
            assert torch.equal(unet(x, t.expand(2), text).sample, expected)
        equal = [unet(x, torch.full((2,), int(t), device=device()), text).sample for t in STEPS]
    for ours, expected in zip(equal, alone, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_pipelines_that_take_turns_keep_their_caches():
    unet = dato.apply_patch(tiny_unet(), SCHEDULE)
    depths, text = counted(unet), texts(2)
    lists = [STEPS.to(device()), STEPS.to(device()) - 5]
    x = randn(1, 4, 16, 16)
    with torch.no_grad():
        for step in range(len(STEPS)):
            for timesteps, one in zip(lists, text, strict=True):
                unet(x, timesteps[step], one)
    assert depths == [depth for depth in SCHEDULE.depths for _ in lists]
    assert len(unet._dato_patch._generations.running) <= MOST_GENERATIONS


def test_generations_that_were_cut_short_are_dropped():
    unet = dato.apply_patch(tiny_unet(), Schedule([12, 1, 12, 1]))
    text, x = texts(1)[0], randn(1, 4, 16, 16)
    kept = []
    with torch.no_grad():
        for _ in range(3 * MOST_GENERATIONS):
            timesteps = STEPS[:4].to(device()).clone()
            kept.append(timesteps)
            for t in timesteps[:2]:
                unet(x, t, text)
    assert len(unet._dato_patch._generations.running) == MOST_GENERATIONS


@pytest.mark.parametrize("options", [{}, *thorough({"prune_ratio": 0.5})])
def test_threads_that_share_a_unet(make_pipe, options):
    """Each thread has its own pipeline and sampler around one UNet; each image equals the one it gives alone.

    A tokenizer of transformers is not safe in several threads, so each has one of its own.
    """
    first = make_pipe()
    samplers = ("ddim", "plms", "dpm++2m", "euler")
    pipes = []
    for sampler in samplers:
        pipe = type(first)(**first.components | {"tokenizer": copy.deepcopy(first.tokenizer)})
        pipe.set_progress_bar_config(disable=True)
        set_scheduler(pipe, sampler)
        pipes.append(pipe)
    schedule = Schedule([12, 1, 0, 3, 12, 1], orders=[0, 0, 0, 0, 0, 1])
    dato.apply_patch(first, schedule, **options)
    runs = [(pipe, steps, images) for pipe in pipes for steps, images in ((4, 1), (6, 2))]

    def run(pipe, steps, images):
        set_scheduler(pipe, samplers[pipes.index(pipe)])
        return draw(pipe, steps, images)

    with pytest.warns(UserWarning, match="resampled"):
        alone = [run(*one) for one in runs]
    ready, wrong = threading.Barrier(len(pipes)), []

    def work(number):
        ready.wait()
        for turn in range(3):
            for place in (2 * number, 2 * number + 1):
                ours = run(*runs[place])
                if not torch.allclose(ours, alone[place], rtol=1e-4, atol=1e-5):
                    wrong.append((place, turn))

    with ThreadPoolExecutor(len(pipes)) as threads:
        list(threads.map(work, range(len(pipes))))
    assert not wrong
