"""Random runs, one after the other, through a few pipelines: each equals the same run alone in another process.

`pytest tests/unet/test_stress.py --combinations 1000` for more of them.
"""

import contextlib
import copy
import gc
import inspect
import multiprocessing
import random
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest
import torch
import which_tests
from pipeline_features import SAMPLERS
from tiny_pipelines import PIPELINES, SIZED, sample, tiny

import dato
from dato import Pruning, Schedule
from dato.samplers import num_calls, set_scheduler
from dato.unet.foreign import check_depths
from dato.unet.ladder import Ladder


def combination(number: int) -> dict[str, Any]:
    """What the run of that number is."""
    draw = random.Random(number)
    name = draw.choice(PIPELINES)
    call: dict[str, Any] = {"guidance_scale": draw.choice([3.0, 3.0, 1.0])} if "IP-Adapter" not in name else {}
    if draw.random() < 0.3:
        call["num_images_per_prompt"] = 2
    if name in SIZED and draw.random() < 0.5:
        call["height"], call["width"] = draw.choice([(24, 40), (48, 32), (40, 40)])
    return {
        "name": name,
        "sampler": "lcm" if name == "LCM" else draw.choice(SAMPLERS),
        "steps": draw.randint(2, 6),
        "seed": draw.randint(0, 9),
        "call": call,
        "schedule": draw.randint(0, 10**9),
        "calls": draw.choice([None, None, None, 4, 9]),  # None: as many as the run has
        "follow": draw.random() < 0.5,
        "hook": draw.choice([None, None, None, None, "up_blocks.1", "down_blocks.0"]),
        "apart": name == "SD 1.x" and draw.random() < 0.5,  # guidance in two calls
        "thread": draw.random() < 0.2,
    }


def schedule_of(pipe, what: dict[str, Any]) -> Schedule:
    draw, rungs = random.Random(what["schedule"]), len(Ladder(pipe.unet))
    calls = what["calls"] or num_calls(pipe, what["steps"])
    shared = draw.random() < 0.7
    pruning = Pruning(
        recover_from=draw.choice(["base", "kept", "past"]),
        score=draw.choice(["sito", "dato", "I", "IV"]),
        max_downsample=draw.choice([None, 2]),
        shared=shared,
        align_cfg=draw.random() < 0.3,
        choose_every=draw.choice([1, 1, 2]) if shared else 1,
        cross_attention=draw.random() < 0.3,
        feed_forward=draw.random() < 0.3,
    )
    return Schedule(
        [rungs] + [draw.choice([rungs, 0, 1, 1, 2, draw.randint(0, rungs)]) for _ in range(calls - 1)],
        [draw.choice([0, 0, 0.25, 0.5]) for _ in range(calls)],
        [draw.choice([0, 0, 1, 2]) for _ in range(calls)],
        rungs,
        pruning,
        draw.choice(["polynomial", "polynomial", "aligned", "chebyshev"]),
    )


def run(pipe, kwargs, what: dict[str, Any]) -> torch.Tensor:
    call = {
        key: value for key, value in what["call"].items() if key in inspect.signature(type(pipe).__call__).parameters
    }
    set_scheduler(pipe, what["sampler"])
    follow = what["follow"] and hasattr(pipe, "controlnet")
    with contextlib.ExitStack() as stack:
        if what["hook"] is not None:
            handle = pipe.unet.get_submodule(what["hook"]).register_forward_hook(_louder)
            stack.callback(handle.remove)
        schedule = schedule_of(pipe, what)
        if what["hook"] is not None and not _passes(pipe.unet, schedule):
            schedule = Schedule([schedule.rungs if depth else 0 for depth in schedule.depths], rungs=schedule.rungs)
        dato.apply_patch(pipe, schedule, controlnet="follow" if follow else None)
        if what["apart"]:
            stack.enter_context(_apart(pipe.unet))
        if not what["thread"]:
            return sample(pipe, {**kwargs, **call}, what["steps"], what["seed"])
        with ThreadPoolExecutor(1) as other:
            return other.submit(sample, pipe, {**kwargs, **call}, what["steps"], what["seed"]).result()


def _louder(module, args, output):
    return (output[0] * 1.1, output[1]) if isinstance(output, tuple) else output * 1.1


def _passes(unet, schedule: Schedule) -> bool:
    try:
        check_depths(Ladder(unet).blocks, schedule.depths)
    except dato.DatoError:
        return False
    return True


@contextlib.contextmanager
def _apart(unet):
    """Guidance in two calls: each part of the batch by itself."""
    inner = unet.forward

    def forward(sample, timestep, encoder_hidden_states, return_dict=True, **more):
        parts = 2 if len(sample) % 2 == 0 else 1
        pairs = zip(sample.chunk(parts), encoder_hidden_states.chunk(parts), strict=True)
        results = [inner(x, timestep, encoder_hidden_states=text, return_dict=False, **more)[0] for x, text in pairs]
        return (torch.cat(results),)

    unet.forward = forward
    try:
        yield
    finally:
        unet.forward = inner


def alone(number: int) -> torch.Tensor:
    """The run of that number through a pipeline that nothing else has used."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    what = combination(number)
    return run(*tiny(what["name"]), what)


class Stop(Exception):
    pass


def disturb(pipe, kwargs, after: int) -> None:
    """A run that an error ends."""

    def stop(pipe, step, timestep, values):
        if step == after:
            raise Stop
        return values

    if "callback_on_step_end" in inspect.signature(type(pipe).__call__).parameters:
        with pytest.raises(Stop):
            sample(pipe, kwargs, 6, callback_on_step_end=stop)


def held() -> int:
    """Bytes of all tensors."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if _is_tensor(t)}
    return sum(storages.values())


def _is_tensor(thing: Any) -> bool:
    return type(thing) in (torch.Tensor, torch.nn.Parameter)


def test_runs_do_not_depend_on_what_ran_before(request):
    count = which_tests.combinations(request.config)
    warnings.simplefilter("ignore")
    pool = {name: tiny(name) for name in PIPELINES}
    schedulers = {name: (type(each.pipe.scheduler), each.pipe.scheduler.config) for name, each in pool.items()}
    with torch.no_grad():
        for pipe, kwargs in pool.values():
            sample(pipe, kwargs, 2)
    for each in pool.values():
        each.pipe.scheduler = None  # these keep predictions
    before = held()

    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as elsewhere:
        expected = elsewhere.map(alone, range(count), chunksize=5)
        for number, truth in zip(range(count), expected, strict=True):
            what = combination(number)
            pipe, kwargs = pool[what["name"]]
            kind, config = schedulers[what["name"]]
            pipe.scheduler = kind.from_config(config)
            if number % 7 == 3:
                disturb(pipe, kwargs, after=number % 2)
            if number % 11 == 5:
                dato.remove_patch(pipe)
            latents = run(pipe, kwargs, what)
            assert latents.shape == truth.shape, what
            assert torch.equal(latents.nan_to_num(7.0), truth.nan_to_num(7.0)), what
            assert torch.isfinite(latents).all(), what

    for each in pool.values():
        dato.remove_patch(each.pipe)
        each.pipe.scheduler = None
    del latents, truth
    assert held() <= before


@pytest.mark.thorough
def test_two_hundred_generations_in_four_threads():
    """Sizes, lengths, batches and samplers differ; each image equals the one of the same run alone."""
    warnings.simplefilter("ignore")
    first, kwargs = tiny("SD 1.x")
    schedule = Schedule([12, 1, 0, 12, 3, 0], [0, 0.5, 0, 0.25, 0, 0], [0, 1, 0, 0, 1, 1])
    dato.apply_patch(first, schedule)
    runs = [
        {"sampler": sampler, "steps": steps, "seed": seed, "call": {"height": height, "num_images_per_prompt": images}}
        for seed, (sampler, steps, height, images) in enumerate(
            zip(
                ["ddim", "plms", "dpm++2m", "euler", "unipc", "heun"] * 4,
                [3, 4, 5, 6] * 6,
                [32, 48, 24, 40] * 6,
                [1, 2, 1, 3, 1] * 5,
                strict=False,
            )
        )
    ]

    def make():
        return type(first)(**first.components | {"tokenizer": copy.deepcopy(first.tokenizer)})

    def go(pipe, what):
        pipe.scheduler = type(scheduler).from_config(scheduler.config)
        set_scheduler(pipe, what["sampler"])
        return sample(pipe, {**kwargs, **what["call"]}, what["steps"], what["seed"])

    def work(number):
        pipe, draw = make(), random.Random(number)
        pipe.set_progress_bar_config(disable=True)
        for _ in range(50):
            place = draw.randrange(len(runs))
            if not torch.equal(go(pipe, runs[place]), alone[place]):
                wrong.append((number, place))

    scheduler, wrong = first.scheduler, []
    alone = [go(first, what) for what in runs]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    assert not wrong
