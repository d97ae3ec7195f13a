"""The searches as Python functions, as in a notebook: on a pipeline in memory, with the user's own changes to it."""

import inspect
import signal
from dataclasses import fields

import pytest
import torch
from conftest import PROMPTS, draw
from diffusers import EulerDiscreteScheduler
from even_table import measured
from peft import LoraConfig
from tiny_pipelines import tiny

import dato
from dato import DatoError, load_front
from dato.evaluation.evaluator import Evaluator
from dato.search import ProgressBar, SearchProgress, search_depth, search_joint, search_ratio
from dato.search.journal import read_entries
from dato.search.options import DepthSearch, JointSearch, RatioSearch

# A search of seconds, whose times are predicted so that the same seed gives the same front.
FEW = {
    "preset": "quick",
    "steps": [2, 4],
    "pop_size": 4,
    "generations": 2,
    "rounds": 0,
    "latency": "table",
    "batch_size": 1,
}


class Told(SearchProgress):
    """Notes what it is told, and asks to stop after some candidates."""

    def __init__(self, stop_after=None):
        self.notes, self.phases, self.points, self.stop_after = [], [], [], stop_after

    def note(self, text):
        self.notes.append(text)

    def phase(self, name, total):
        self.phases.append((name, total))

    def judged(self, point, front, images):
        assert signal.getsignal(signal.SIGINT) is self.handler
        self.points.append(point)
        assert front and images >= 0

    def should_stop(self):
        return self.stop_after is not None and len(self.points) >= self.stop_after

    handler = signal.getsignal(signal.SIGINT)


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """The latency table is the same in every search, as if a clock ran evenly."""
    monkeypatch.setattr("dato.search.study.measure_table", measured)


@pytest.fixture
def judged(monkeypatch):
    """The schedules whose images are generated."""
    schedules, judge = [], Evaluator.judge
    monkeypatch.setattr(Evaluator, "judge", lambda self, s, *rest: schedules.append(s) or judge(self, s, *rest))
    return schedules


@pytest.fixture
def mine(make_pipe):
    """A pipeline in a notebook: its own sampler, and a LoRA."""
    pipe = make_pipe()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config, use_karras_sigmas=True)
    torch.manual_seed(5)
    targets = ["to_q", "to_v"]
    pipe.unet.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    pipe.set_progress_bar_config(disable=False, leave=False)
    return pipe


def seen(front):
    """What is the same whenever a search is run again."""
    return [(p.schedule, p.quality, p.latency_ms, p.speedup, p.steps) for p in (front.baseline, *front.points)]


@pytest.mark.thorough
def test_the_function_finds_what_the_command_finds(run, tmp_path):
    options = ["--steps", "2,4", "--pop-size", 4, "--generations", 2, "--rounds", 0, "--latency", "table"]
    out = tmp_path / "command"
    code, _, errors = run("search/search_depth.py", *options, "--images", 1, "--batch-size", 1, "--out", out, "--quiet")
    assert code == 0, errors
    command = load_front(out)
    pipe = dato.load_pipeline()
    front = search_depth(pipe, dato.emoji_sd.prompts("search")[:1], scheduler="dpm++2m", **FEW)
    assert seen(front) == seen(command) and front.references.keys() == command.references.keys()
    conditions = dict(front.conditions)
    assert len(conditions.pop("pipeline_sha256")) == 64
    assert conditions == command.conditions


def test_a_pipeline_is_searched_as_it_is_and_left_as_it_was(mine, capfd):
    before, sampler, bar = draw(mine, 4), mine.scheduler, dict(mine._progress_bar_config)
    capfd.readouterr()
    told = Told()
    front = search_depth(mine, PROMPTS[:2], progress=told, **FEW)
    assert capfd.readouterr() == ("", "")  # nothing is printed that was not asked for
    assert front.conditions["scheduler"] == "EulerDiscreteScheduler" and front.conditions["guidance_scale"] == 7.5
    assert front.conditions["prompts"] == PROMPTS[:2] and front.conditions["search"]["images"] >= 2 * len(front)
    assert [name for name, _ in told.phases] == ["Reference schedules", "Search", "Timing side by side"]
    assert len(told.points) >= 8 and any("Latency table" in note for note in told.notes)
    assert mine.scheduler is sampler and mine._progress_bar_config == bar
    assert torch.equal(draw(mine, 4), before)
    # The reference images are those of the LoRA: without it another front is found.
    mine.unet.disable_adapters()
    plain = search_depth(mine, PROMPTS[:2], **FEW)
    assert [p.quality for p in plain.references.values()] != [p.quality for p in front.references.values()]
    assert plain.conditions["pipeline_sha256"] != front.conditions["pipeline_sha256"]
    dato.apply_patch(mine, front)
    assert dato.current_schedule(mine) == front.knee().schedule


def test_a_run_is_resumed_by_its_folder(mine, tmp_path, judged):
    whole = search_depth(mine, PROMPTS[:2], out=tmp_path / "whole", **FEW)
    number = len(judged)
    judged.clear()
    first, again = Told(stop_after=5), Told()
    stopped = search_depth(mine, PROMPTS[:2], out=tmp_path / "run", progress=first, **FEW)
    assert stopped.conditions["search"]["finished"] is False and len(judged) == 5
    front = search_depth(mine, PROMPTS[:2], out=tmp_path / "run", progress=again, **FEW)
    assert any("5 candidates are known" in note for note in again.notes)
    assert len(judged) == len(set(judged)) == number and seen(front) == seen(whole)
    assert load_front(tmp_path / "run") == front and front.conditions["search"]["finished"]
    assert search_depth(mine, PROMPTS[:2], out=str(tmp_path / "run"), **FEW) == front
    assert len(judged) == number  # all of it was in the journal


def test_another_search_is_not_resumed_and_the_message_says_why(run, mine, tmp_path):
    out = tmp_path / "run"
    search_depth(mine, PROMPTS[:1], out=out, progress=Told(stop_after=1), **FEW)
    for options, message in [
        ({"seed": 1}, "search.seed: 0 there, 1 here"),
        ({"pop_size": 6}, "search.pop_size: 4 there"),
    ]:
        with pytest.raises(DatoError, match=message):
            search_depth(mine, PROMPTS[:1], out=out, **FEW | options)
    with pytest.raises(DatoError, match="prompts_sha256"):
        search_depth(mine, PROMPTS[1:2], out=out, **FEW)
    with pytest.raises(DatoError, match="command: depth there, joint here"):
        search_joint(mine, PROMPTS[:1], out=out, **FEW)
    for module in mine.unet.modules():
        if hasattr(module, "lora_A"):
            module.set_scale("default", 0.5)
    with pytest.raises(DatoError, match=r"other settings \(pipeline_sha256: "):
        search_depth(mine, PROMPTS[:1], out=out, **FEW)
    code, _, errors = run("search/search_depth.py", "--resume", out)
    assert code == 2 and "was begun in Python" in errors
    (out / "journal.jsonl").unlink()
    with pytest.raises(DatoError, match=r"`out`: .* holds a front without its journal"):
        search_depth(mine, PROMPTS[:1], out=out, **FEW)


def test_ratios_on_top_of_a_front_in_memory_or_on_disk(mine, tmp_path):
    few = {"pop_size": 4, "generations": 2, "rounds": 0, "latency": "measured"}
    depths = search_depth(mine, PROMPTS[:2], out=tmp_path / "depth", **FEW)
    front = search_ratio(mine, depths, ratios=[0, 0.5], pick="knee", **few)
    assert front.conditions["search"]["kind"] == "ratio" and front.conditions["search"]["ratios"] == [0, 0.5]
    assert front.conditions["prompts"] == PROMPTS[:2] and front.conditions["guidance_scale"] == 7.5
    assert {r for p in front.points for r in p.schedule.ratios} <= {0, 0.5}
    again = search_ratio(mine, tmp_path / "depth", PROMPTS, images=1, out=tmp_path / "ratio", **few)
    assert again.conditions["search"]["depths"] == str(tmp_path / "depth")
    assert len(again.conditions["prompts"]) == 1 and set(again.conditions["prompts"]) <= set(PROMPTS)
    assert len(read_entries(tmp_path / "ratio" / "journal.jsonl")[0]) > 4
    dato.set_scheduler(mine, "ddim")
    with pytest.raises(DatoError, match=r"`front` was searched with the sampler EulerDiscreteScheduler, .* has ddim"):
        search_ratio(mine, depths, **few)


def test_depths_and_ratios_together(mine):
    options = {"images": 1, "depths": [0, 1], "ratios": [0.5], "orders": [0], **FEW, "latency": "measured"}
    front = search_joint(mine, PROMPTS, **options)
    search = front.conditions["search"]
    assert len(front.conditions["prompts"]) == 1
    assert search["kind"] == "joint" and search["ratios"] == [0, 0.5] and search["depths"] == [0, 1, 12]


def test_a_pipeline_that_needs_more_arguments_gets_them(tmp_path):
    pipe, kwargs = tiny("ControlNet")
    given = {"image": kwargs["image"][..., :24]}
    options = {"steps": [4], "pop_size": 4, "generations": 1, "rounds": 0, "batch_size": 1, "out": tmp_path / "run"}
    options |= {"preset": "quick", "depths": [0, 1], "guidance_scale": 3.0}
    front = search_depth(pipe, PROMPTS[:1], pipe_kwargs=given, **options)
    assert "sha256" in front.conditions["pipe_kwargs"]["image"]
    assert (front.conditions["height"], front.conditions["width"]) == given["image"].shape[2:]  # not the model's own
    with pytest.raises(DatoError, match=r"pipe_kwargs\.image"):
        search_depth(pipe, PROMPTS[:1], pipe_kwargs={"image": given["image"] / 2}, **options)
    with pytest.raises(DatoError, match="`pipe_kwargs`: guidance_scale is given"):
        search_depth(pipe, PROMPTS[:1], pipe_kwargs={"guidance_scale": 2.0})


@pytest.mark.parametrize(
    ("function", "options"), [(search_depth, DepthSearch), (search_ratio, RatioSearch), (search_joint, JointSearch)]
)
def test_signature_and_docstring_say_every_option(function, options):
    parameters = inspect.signature(function).parameters
    for field in fields(options):
        assert parameters[field.name].default == field.default
        assert parameters[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"    {field.name}: " in function.__doc__
    assert {"pipe", "out", "progress"} <= set(parameters) and "{options}" not in function.__doc__
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        function(None, None, speed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "`preset` 'slow': known are fast, thorough, quick, paper"),
        ({"forecast": "hope"}, "`forecast` 'hope'"),
        ({"latency": "fast"}, "`latency` 'fast': known are auto, table, measured"),
        ({"quality": "beauty"}, "unknown quality metric 'beauty'"),
        ({"pop_size": 1}, "`pop_size` 1: it must be at least 2"),
        ({"min_quality": float("nan")}, "`min_quality` nan: give a finite number"),
        ({"depths": [0, 13]}, "`depths`: the depths of this UNet are 0 to 12, not 13"),
        ({"steps": [1]}, "at least two UNet calls: give more `steps`"),
        ({"orders": [3]}, "`orders`: forecasts have order 0, 1 or 2"),
        ({"minutes": 3}, "`minutes` belongs to `preset` fast or thorough, not to quick"),
        ({"preset": "fast"}, "`pop_size` belongs to `preset` quick or paper; fast goes by `minutes`"),
    ],
)
def test_errors_name_arguments_of_python(make_pipe, options, message):
    with pytest.raises(DatoError) as raised:
        search_depth(make_pipe(), PROMPTS[:1], **FEW | options)
    assert message in str(raised.value) and "--" not in str(raised.value)


def test_prompts_are_a_list_and_a_pipeline_has_a_unet(make_pipe):
    for prompts in ("one prompt", []):
        with pytest.raises(DatoError, match="`prompts`: give a list"):
            search_depth(make_pipe(), prompts)
    with pytest.raises(DatoError, match="has no UNet"):
        search_depth(object(), PROMPTS)


def test_a_bar_is_shown_where_it_is_asked_for(make_pipe, capsys):
    search_depth(make_pipe(), PROMPTS[:1], progress=True, **FEW | {"generations": 1})
    assert "Reference schedules" in capsys.readouterr().out
    assert isinstance(ProgressBar(), SearchProgress)
