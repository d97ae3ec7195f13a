"""The benchmark: every row runs the method that it names, and its numbers fit together."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from conftest import PROMPTS, tiny_unet

import dato
from dato import Schedule
from dato.evaluation.methods import schedule_method, stock_method
from dato.experiments import speed
from dato.experiments.controlnet_speed import time_control
from dato.experiments.selection_speed import time_selection
from dato.generation.sampling import Sampling
from dato.prediction.flops import schedule_flops
from dato.unet.compiled import CompiledCalls

SHAPE = (2, 4, 32, 32)  # one image with guidance, of the embedded model


def test_images_are_timed_in_turn_and_compared_with_stock(pipe):
    turns = []

    def method(name, schedule):
        ours = schedule_method(schedule, name, steps=4)

        def apply(pipe):
            turns.append(name)
            return ours.apply(pipe)

        return replace(ours, apply=apply)

    whole, shallow = Schedule.full(4), Schedule.uniform(4, 4, 1)
    dato.set_scheduler(pipe, "dpm++2m")
    methods = [method("stock", whole), method("ours", shallow)]
    rows = speed.time_images(pipe, methods, PROMPTS[:1], Sampling(4, 3.0), 2)
    assert turns == ["stock", "ours"] * 4  # once to warm up, twice to be timed, once for memory
    stock, ours = rows
    assert stock["speedup"] == stock["loop_speedup"] == stock["allowed"] == stock["efficiency"] == 1
    flops = [schedule_flops(pipe.unet, s, sample_shape=SHAPE) for s in (whole, shallow)]
    assert ours["allowed"] == flops[0] / flops[1]
    assert ours["speedup"] == stock["image_ms"] / ours["image_ms"]
    assert ours["efficiency"] == pytest.approx(stock["loop_ms"] / ours["loop_ms"] / ours["allowed"])
    for row in rows:
        assert 0 < row["unet_ms"] <= row["loop_ms"] <= row["image_ms"] and row["peak_mb"] > 1
    # A quarter of the calls, and shallow ones: by no noise are they slower.
    assert ours["loop_ms"] < stock["loop_ms"]


def test_calls_run_at_the_depth_and_ratio_that_they_are_timed_for(pipe):
    seen = []

    def before(module, args, kwargs):
        seen.append([])

    handles = [pipe.unet.register_forward_pre_hook(before, with_kwargs=True)]
    for name, part in (("mid", pipe.unet.mid_block), ("up", pipe.unet.up_blocks[3].resnets[2])):
        handles.append(part.register_forward_hook(lambda *_, name=name: seen[-1].append(name)))
    attention = pipe.unet.up_blocks[3].attentions[2].transformer_blocks[0].attn1
    handles.append(attention.register_forward_hook(lambda m, args, out: seen[-1].append(args[0].shape[1])))
    rows = speed.time_calls(pipe, [0, 1, 12], [0.0, 0.5], Sampling(), 1)
    for handle in handles:
        handle.remove()
    kinds = [(row["method"], row["depth"], row["ratio"]) for row in rows]
    tomesd = [kind for kind in kinds if kind[0].startswith("ToMeSD")]
    ours = [("dato", 12, 0.0), ("dato", 12, 0.5), ("dato", 1, 0.0), ("dato", 1, 0.5), ("dato", 0, 0.0)]
    assert kinds == [("stock", 12, 0.0), *tomesd, *ours]
    turn = seen[: len(seen) // 2]
    assert turn[-5:] == [["mid", "up", 1024], ["mid", "up", 512], ["up", 1024], ["up", 512], []]
    by_kind = {kind: row for kind, row in zip(kinds, rows, strict=True)}
    assert by_kind["dato", 1, 0.5]["allowed"] > by_kind["dato", 1, 0.0]["allowed"] == pytest.approx(1 / 0.098, rel=0.01)
    assert all(row["speedup"] == rows[0]["call_ms"] / row["call_ms"] for row in rows)


def test_choosing_tokens_is_compared_with_the_plain_steps():
    rows = time_selection(torch.device("cpu"), torch.float32, 1, size=32, channels=16, batches=(1, 2))
    assert [row["batch"] for row in rows] == sorted(row["batch"] for row in rows)
    for batch in (1, 2):
        own = {row["method"]: row for row in rows if row["batch"] == batch}
        assert {"plain N x N", "dato", "dato, local"} <= set(own)
        assert own["plain N x N"]["speedup"] == own["plain N x N"]["memory_share"] == 1
        # At least the N x N matrix in float32; ours never holds as much.
        assert own["plain N x N"]["peak_mb"] >= batch * 1024 * 1024 * 4 / 2**20
        assert max(own[name]["memory_share"] for name in ("dato", "dato, local")) < 0.25


def test_a_control_net_is_timed_whole_and_following():
    unet, count = tiny_unet(), Counter()
    schedules = {"N=3 d=1": Schedule.uniform(4, 3, 1), "whole": Schedule.full(4)}
    rows = time_control(unet, schedules, (2, 4, 8, 8), 1, lambda: count.update(turns=1))
    kinds = [f"stock, {kind}" for kind in ("no ControlNet", "ControlNet")]
    kinds += [f"{n}, {kind}" for n in schedules for kind in ("no ControlNet", "ControlNet", "ControlNet that follows")]
    assert [row["method"] for row in rows] == kinds and count["turns"] == 2 * len(rows)
    assert rows[2]["speedup"] == rows[0]["call_ms"] / rows[2]["call_ms"]
    assert rows[4]["speedup"] == rows[1]["call_ms"] / rows[4]["call_ms"]
    assert "forward" not in unet.__dict__


@pytest.mark.thorough
def test_stock_and_ours_compiled(pipe):
    eager = {"backend": "eager"}
    forward, compiled = speed.compiled_forward(pipe.unet, **eager), CompiledCalls(pipe.unet, **eager)
    with torch.no_grad(), stock_method(Schedule.full(2), forward=forward).apply(pipe):
        assert pipe.unet.forward is forward
    assert "forward" not in pipe.unet.__dict__
    rows = speed.time_calls(pipe, [1], [0.0], Sampling(), 1, compiled=compiled, forward=forward)
    assert [row["method"] for row in rows] == ["stock", "dato"] and compiled.count == 2


def test_the_command_writes_tables_json_and_a_chart(run, tmp_path):
    path, chart = tmp_path / "speed.json", tmp_path / "speed.png"
    code, printed, _ = run(
        "scripts/benchmark.py",
        *("--parts", "calls,images", "--depths", "0,1", "--ratios", "0,0.5", "--rounds", 1, "--steps", 2),
        *("--guidance-scale", 1, "--height", 32, "--width", 32, "--methods", "pruned 50%; sd15-uniform-n2-d1"),
        *("--batch-size", "1,2", "--no-memory", "--strategies", "sd15-uniform-n2-d1", "--out", path, "--chart", chart),
    )
    assert code == 0
    data = json.loads(path.read_text())
    assert data["format"] == "dato.benchmark" and data["conditions"]["hardware"] and data["conditions"]["versions"]
    assert "--batch-size 1,2" in data["conditions"]["command"]
    assert {row["batch"] for row in data["images"]} == {row["batch"] for row in data["calls"]} == {1, 2}
    names = [row["method"] for row in data["images"] if row["batch"] == 1]
    assert names[0] == "stock" and names[-1] == "sd15-uniform-n2-d1" and "pruned 50%" in names
    assert all(name in printed for name in names)
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_only_the_methods_that_are_named_run(run, tmp_path):
    path = tmp_path / "speed.json"
    options = ("--parts", "images", "--methods", "DaTo's vector, pruned 50%; N=3 d=1", "--rounds", 1, "--steps", 4)
    assert run("scripts/benchmark.py", *options, "--guidance-scale", 1, "--no-memory", "--out", path)[0] == 0
    names = [row["method"] for row in json.loads(path.read_text())["images"]]
    assert names == ["stock", "N=3 d=1", "DaTo's vector, pruned 50%"]


@pytest.mark.thorough
def test_the_command_checks_the_latency_table_and_times_a_control_net(run, tmp_path):
    path = tmp_path / "table.json"
    options = (
        "--parts",
        "table,control",
        "--depths",
        "0,1",
        "--ratios",
        "0,0.5",
        "--rounds",
        1,
        "--steps",
        3,
        "--out",
        path,
    )
    code, printed, _ = run("scripts/benchmark.py", *options, "--no-memory", "--out", path)
    assert code == 0
    data = json.loads(path.read_text())
    assert len(data["table"]) == 20 and all(min(pair.values()) > 0 for pair in data["table"])
    assert "The latency table against the clock, 20 schedules" in printed
    assert len(data["control"]) == 11 and "ControlNet that follows" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--parts", "speed"], "--parts: unknown part 'speed'; known are calls, images, table, control, selection"),
        (["--compile-mode", "reduce-overhead"], "--compile-mode needs --compile"),
        (["--compile", "--parts", "table"], "the latency table is of eager calls"),
        (["--depths", "13"], "depths go from 0 to 12"),
        (["--ratios", "0.9"], "lower the ratio"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "two"], "--batch-size"),
        (["--parts", "selection", "--chart", "x.png"], "--parts images"),
        (["--strategies", "missing"], "missing"),
        (["--parts", "images", "--methods", "N=5 d=0; DaTo"], "--methods: unknown method 'DaTo'; known are"),
        (["--similarity", "far"], "similarity must be one of global, local"),
        (["--height", "60"], "multiple of 8"),
        (["--model", "sd99-random"], "cannot load the model"),
    ],
)
def test_bad_input_is_one_line(run, arguments, message, tmp_path):
    path = tmp_path / "out.json"
    code, _, error = run("scripts/benchmark.py", *arguments, "--rounds", 1, "--steps", 2, "--out", path)
    assert code == 2 and message in " ".join(error.split()) and "Traceback" not in error
    assert not list(tmp_path.iterdir())
