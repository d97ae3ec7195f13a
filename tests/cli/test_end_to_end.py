"""The whole path of a user: both searches, the fronts that they write, images with these fronts; and wrong input."""

import json
from pathlib import Path

import pytest
import torch
from conftest import SMALL, SMALL_DEPTHS, call, draw
from even_table import measured
from PIL import Image

import dato
from dato import Schedule, load_front
from dato.evaluation.evaluator import Evaluator

pytestmark = pytest.mark.usefixtures("one_round_of_measuring")


def resnets_run(unet, schedule):
    """How many resnets a schedule runs: those of its rungs, down and up, and the mid block's two in whole calls."""
    downsamplers = {3, 6, 9}
    total = 0
    for depth in schedule.depths:
        down = sum(1 for rung in range(1, depth) if rung not in downsamplers)
        total += down + depth + (2 if depth == 12 else 0)
    return total


def test_1_search_depths(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, printed, _ = run("search/search_depth.py", *SMALL_DEPTHS, "--steps", "3,6", "--out", "runs/depth-1")
    assert code == 0
    assert "python search/search_ratio.py --depths runs/depth-1/pareto.json" in printed
    assert "python scripts/generate.py --strategy runs/depth-1/pareto.json --pick speedup=" in printed
    front = load_front("runs/depth-1/pareto.json")
    conditions = front.conditions
    assert conditions["calls"] == 6 and conditions["steps"] == 6 and conditions["quality"] == "psnr"
    assert conditions["search"]["steps"] == [3, 6] and conditions["search"]["orders"] == [0, 1]
    assert conditions["scheduler"] == "DPMSolverMultistepScheduler" and conditions["scheduler_name"] == "dpm++2m"
    assert len(conditions["prompts"]) == 2 and conditions["model"] == "emoji-sd"
    for key in ("dtype", "height", "scheduler", "guidance_scale", "prompts_sha256", "seeds", "latency", "hardware"):
        assert conditions[key]
    assert conditions["search"]["candidates"] >= 4 and conditions["search"]["images"] >= 8
    assert front.baseline.schedule.depths == (12,) * 6 and front.baseline.speedup == 1
    assert front.references["N=2 d=1"].schedule.depths == (12, 1, 12, 1, 12, 1)
    # Stock with fewer steps is compared with, and everything says for how many steps it is.
    assert front.references["3 steps"].schedule == Schedule.full(3) and front.references["2 steps"].steps == 2
    every = [*front.points, *front.references.values()]
    assert all(p.steps == len(p.schedule) and p.scheduler == "dpm++2m" for p in every)
    # The times were measured again after the search, so references may beat the front by chance in time, but what
    # is on it is no worse than a reference of equal images.
    assert "3 steps" in printed and {p.steps for p in front.points} <= {2, 3, 6}
    for faster, better in zip(front.points, front.points[1:], strict=False):
        assert faster.latency_ms < better.latency_ms and faster.quality < better.quality
    assert all({"psnr", "ssim", "clip-score", "unet_ms"} <= set(p.metrics) for p in front.points)


def test_2_search_ratios_on_top(run, folder, monkeypatch):
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    monkeypatch.chdir(folder)
    code, _, errors = run("search/search_ratio.py", *SMALL, "--score", "dato", "--out", "runs/ratio-1")
    assert code == 0 and "Building on runs/depth-1/pareto.json" in errors.replace("\n", "")
    depth, ratio = load_front("runs/depth-1/pareto.json"), load_front("runs/ratio-1/pareto.json")
    known = [*depth.points, *ratio.references.values()]
    assert {p.schedule.depths for p in ratio.points} <= {p.schedule.depths for p in known}
    assert ratio.points[0].schedule.pruning.score == "dato" and ratio.conditions["calls"] == 6
    assert {p.steps for p in ratio.points} <= {p.steps for p in depth.points} | {2, 3}
    assert "all whole, ratio 0.7" in ratio.references
    code, _, _ = run(
        "search/search_ratio.py",
        *SMALL,
        "--images",
        1,
        "--rounds",
        0,
        "--generations",
        1,
        "--depths",
        "runs/depth-1/pareto.json",
        "--pick",
        "knee",
        "--out",
        "runs/ratio-2",
    )
    assert code == 0
    picked = load_front("runs/ratio-2/pareto.json")
    searched = {p.schedule.depths for p in picked.points} - {p.schedule.depths for p in picked.references.values()}
    assert searched <= {depth.knee().schedule.depths}


def test_2a_a_search_of_ratios_is_gone_on_with_from_anywhere(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed, errors = run("search/search_ratio.py", "--resume", folder / "runs" / "ratio-1", "--quiet")
    assert code == 0, errors
    assert "ratio-1" in printed


def test_3_generate_with_a_found_schedule(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, printed, _ = run(
        "scripts/generate.py",
        "--strategy",
        "runs/ratio-1/pareto.json",
        "--repeats",
        1,
        "Red apple on a blue background",
    )
    assert code == 0 and "stock:" in printed and "faster" in printed
    for name in ("red-apple-on-a-blue-background-0.png", "red-apple-on-a-blue-background-0-stock.png"):
        assert Image.open(Path("images") / name).size == (32, 32)


def test_3a_images_of_other_prompts_are_not_overwritten(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    front = str(folder / "runs" / "depth-1")
    for prompt in ("яблоко", "груша"):
        code, _, errors = run("scripts/generate.py", "--strategy", front, "--repeats", 1, prompt)
        assert code == 0, errors
    names = {path.name for path in Path("images").iterdir()}
    assert names == {"яблоко-0.png", "яблоко-0-stock.png", "груша-0.png", "груша-0-stock.png"}


def test_4_a_loaded_front_runs_its_share_of_the_unet(pipe, folder):
    path = folder / "runs" / "depth-1" / "pareto.json"
    dato.apply_patch(pipe, path)
    with pytest.warns(UserWarning, match=r"sampler plms instead of dpm\+\+2m \(dato.set_scheduler"):
        draw(pipe, 2)
    dato.set_scheduler(pipe, "dpm++2m")
    for point in load_front(path).points:
        dato.apply_patch(pipe, path, quality=point.quality)
        assert dato.current_schedule(pipe) == point.schedule
        count = []
        handles = [
            module.register_forward_hook(lambda *_, count=count: count.append(1))
            for module in pipe.unet.modules()
            if type(module).__name__ == "ResnetBlock2D"
        ]
        draw(pipe, **{"steps": point.kwargs["num_inference_steps"]})
        for handle in handles:
            handle.remove()
        assert len(count) == resnets_run(pipe.unet, point.schedule)
    assert len(count) < resnets_run(pipe.unet, Schedule.full(6))


def test_5_evaluate_on_held_out_prompts(run, folder, pipe, monkeypatch):
    monkeypatch.chdir(folder)
    methods = "steps,deepcache,dato,tomesd,sito,rules,order1"
    options = ("--methods", methods, "--plot", "plot.png", "--grid", "grid.png", "--out", "evaluation")
    arguments = ("scripts/evaluate.py", "runs/depth-1/pareto.json", "--height", 64, "--width", 64, *options)
    code, printed, _ = run(*arguments, "--images", 2)
    assert code == 0 and "stock" in printed and "depth-1 0" in printed and "DeepCache N=2 d=1" in printed
    table = json.loads(Path("evaluation/evaluation.json").read_text())
    assert {"3 steps", "ToMeSD-c 50%", "SiTo-e 70%", "DaTo's vector", "order 1: 6 steps, N=2 d=1"} <= set(table["rows"])
    assert table["rows"]["3 steps"]["steps"] == 3 and table["rows"]["order 1: 3 steps, N=2 d=1"]["orders"] == [1, 1, 1]
    assert table["rows"]["SiTo-e 70%"]["ratios"] == [0.7] * 6
    assert Image.open("plot.png").size[0] > 800 and Image.open("grid.png").size[0] > 200
    stock = table["rows"]["stock"]
    assert table["images"] == 2 and stock["metrics"]["psnr"] == 100 and stock["metrics"]["peak_mb"] > 1
    assert set(table["rows"]["depth-1 0"]["metrics"]) >= {"clip-score", "frechet", "psnr", "ssim"}
    lines = Path("evaluation/table.md").read_text().splitlines()
    assert lines[0].startswith(
        "| method | speed-up | ms | MB | total MB | compression | FLOPs | CLIP score | Fréchet distance |"
    )
    assert " | PSNR (dB) | said (psnr) | " in lines[0] and " | plain steps by psnr | " in lines[0]
    assert len(lines) == 2 + len(table["rows"])

    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    weights = sum(value.nbytes for part in parts for value in part.state_dict().values()) / 2**20
    for row in table["rows"].values():
        assert row["metrics"]["total_mb"] - row["metrics"]["peak_mb"] == pytest.approx(weights, rel=1e-3)

    # What each method computes, and what the front says beside what was measured.
    metrics = {name: row["metrics"] for name, row in table["rows"].items()}
    assert metrics["stock"]["flop_share"] == 1 and metrics["3 steps"]["flop_share"] == 0.5
    assert metrics["rule: 3 of 6 whole"]["flop_share"] == 0.5 < metrics["rule: every 2nd of 6 whole"]["flop_share"]
    assert metrics["rule: 3 of 6 whole"]["flop_share"] < metrics["SiTo-e 70%"]["flop_share"] < 1
    assert "flop_share" not in metrics["ToMeSD-c 50%"] and "said_psnr" not in metrics["SiTo-e 70%"]
    points = dict(enumerate(load_front("runs/depth-1/pareto.json").points))
    assert {n: metrics[f"depth-1 {n}"]["said_psnr"] for n in points} == {n: p.quality for n, p in points.items()}
    [claim] = table["claims"]
    assert (claim["front"], claim["metric"], claim["points"]) == ("depth-1", "psnr", len(points))
    assert claim["said"] == pytest.approx(sum(p.quality for p in points.values()) / len(points))
    assert claim["measured"] == pytest.approx(sum(metrics[f"depth-1 {n}"]["psnr"] for n in points) / len(points))
    assert f"depth-1: psnr {claim['said']:.2f} by the front, {claim['measured']:.2f} measured here" in printed

    # What is there is not made again, and not mixed with what was made in another way.
    made = []
    plain = Evaluator.generate
    monkeypatch.setattr(Evaluator, "generate", lambda self, *a, **k: made.append(a[0]) or plain(self, *a, **k))
    code, _, _ = run(*arguments, "--images", 2)
    assert code == 0 and not made
    again = json.loads(Path("evaluation/evaluation.json").read_text())
    assert again["rows"] == table["rows"]
    code, _, errors = run(*arguments, "--images", 2, "--seed", 3)
    assert code == 2 and "evaluation holds images of other settings: seed (seed was 1000 and is 3)" in errors


@pytest.mark.thorough
def test_5a_two_workers_evaluate_as_one_does(run, folder, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    options = ("--images", 4, "--steps", 2, "--methods", "tomesd", "--metrics", "psnr")
    for name, workers in (("alone", 1), ("together", 2)):
        code, _, errors = run("scripts/evaluate.py", *options, "--workers", workers, "--out", name)
        assert code == 0, errors
    alone, together = (json.loads(Path(n, "evaluation.json").read_text())["rows"] for n in ("alone", "together"))
    assert list(alone) == list(together) and len(alone) == 6
    for name, row in alone.items():
        assert row["metrics"]["psnr"] == pytest.approx(together[name]["metrics"]["psnr"], abs=0.01)


def test_5b_a_front_of_another_sampler_keeps_its_number_of_steps(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = ("--images", 2, "--methods", "", "--points", 2, "--out", "plms")
    code, printed, _ = run("scripts/evaluate.py", "runs/depth-1/pareto.json", "--scheduler", "plms", *options)
    assert code == 0, printed
    rows = json.loads(Path("plms/evaluation.json").read_text())["rows"]
    front = load_front("runs/depth-1/pareto.json")
    assert 2 <= len(rows) <= 3 and "resampled" in printed
    for name, row in rows.items():
        if name != "stock":
            own = front.points[int(name.split()[1])]
            assert row["steps"] == own.steps and len(row["depths"]) == own.steps + 1


@pytest.mark.thorough
def test_5c_a_front_where_it_was_not_searched(run, folder, monkeypatch):
    monkeypatch.chdir(folder)
    options = ("--steps", "3,6", "--schedulers", "dpm++2m,ddim", "--guidance", "1,5", "--pick", "knee")
    arguments = ("scripts/generalise.py", "runs/depth-1", "--images", 2, *options, "--out", "elsewhere")
    code, printed, errors = run(*arguments)
    assert code == 0, errors
    data = json.loads(Path("elsewhere/generalisation.json").read_text())
    names = ["as searched", "other seeds", "other prompts and seeds", "3 steps", "ddim", "guidance 5"]
    assert list(data["conditions"]) == names and all(name in printed for name in names)
    front = load_front("runs/depth-1")
    searched = data["conditions"]["as searched"]
    assert searched["knee"]["psnr"] == pytest.approx(front.knee().metrics["psnr"], abs=0.01)
    for rows in data["conditions"].values():
        assert rows["stock"]["psnr"] == 100 and {"knee", "DeepCache N=2 d=1"} <= set(rows)
    assert data["conditions"]["ddim"]["knee"]["psnr"] != searched["knee"]["psnr"]
    assert len(Path("elsewhere/table.md").read_text().splitlines()) == 2 + len(names)
    monkeypatch.setattr(Evaluator, "generate", None)  # everything is there
    assert run(*arguments)[0] == 0


def test_the_command_dato_shows_reports_and_searches(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    code, printed, _ = call(monkeypatch, capsys, "show", "runs/depth-1")
    assert code == 0 and "speed-up" in printed and "stock" in printed
    code, printed, _ = call(monkeypatch, capsys, "report", "runs/depth-1", "emoji-sd-depth", "--pictures", "pictures")
    assert code == 0 and Path("report.html").stat().st_size > 1e6
    assert {p.name for p in Path("pictures").iterdir()} == {"front.png", "schedules.png", "images.png"}
    # Every search ends with its page; made again it is the same.
    before = Path("runs/depth-1/report.html").read_bytes()
    code, _, _ = call(monkeypatch, capsys, "report", "runs/depth-1")
    assert code == 0 and Path("runs/depth-1/report.html").read_bytes() == before
    code, printed, _ = call(monkeypatch, capsys, "search", "--help")
    assert code == 0 and all(kind in printed for kind in ("depth", "ratio", "joint"))
    for arguments, message in [
        (("show", "nothing"), "no file and no shipped strategy"),
        (("report", "runs"), "runs is a folder without pareto.json"),
        (("search", "depth", "--resume", "pictures"), "cannot read pictures/journal.jsonl"),
        (("search", "depth", "--out", "runs/depth-1"), "holds a front already"),
    ]:
        code, printed, errors = call(monkeypatch, capsys, *arguments)
        assert code == 2 and message in " ".join(errors.split()) and "Traceback" not in errors and printed == ""


def test_three_lines_of_python_do_the_same(folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(dato.emoji_sd.PIPE, torch_dtype=torch.float32)
    dato.apply_patch(pipe, folder / "runs" / "depth-1" / "pareto.json", speedup=0.01)
    image = pipe("rose on a white background", num_inference_steps=4).images[0]
    dato.remove_patch(pipe)
    assert image.size == (64, 64)


BAD = [
    ("search/search_depth.py", ("--prompts", "none.txt"), "cannot read none.txt"),
    ("search/search_depth.py", ("--prompts", "empty.txt"), "holds no prompts"),
    ("search/search_depth.py", ("--images", "75"), "75 prompts to search with and 12 to validate by"),
    ("search/search_depth.py", ("--quality", "beauty"), "unknown quality metric 'beauty'"),
    ("search/search_depth.py", ("--preset", "slow"), "--preset 'slow'"),
    ("search/search_depth.py", ("--depths", "a"), "--depths 'a'"),
    ("search/search_depth.py", ("--steps", "10,x"), "--steps '10,x'"),
    ("search/search_depth.py", ("--steps", "0,10"), "steps must be at least 1, not 0"),
    ("search/search_depth.py", ("--steps", "1"), "at least two UNet calls: give more --steps"),
    ("search/search_depth.py", ("--orders", "3"), "--orders: forecasts have order 0, 1 or 2"),
    ("search/search_depth.py", ("--forecast", "hope"), "--forecast 'hope'"),
    ("search/search_depth.py", ("--forecast", "chebyshev"), "--forecast chebyshev reads all of the past, which fast"),
    ("search/search_depth.py", ("--warm-start", "none.json"), "no file and no shipped strategy 'none.json'"),
    (
        "search/search_depth.py",
        ("--warm-start", "emoji-sd-depth", "--depths", "7", "--preset", "quick"),
        "--warm-start emoji-sd-depth: this search cannot hold any of its schedules",
    ),
    ("search/search_depth.py", ("--latency", "fast"), "--latency 'fast': known are auto, table, measured"),
    ("scripts/evaluate.py", ("--methods", "magic"), "unknown method 'magic'"),
    ("search/search_depth.py", ("--depths", "0,13"), "--depths: the depths of this UNet are 0 to 12"),
    ("search/search_depth.py", ("--model", "nowhere"), "give --prompts FILE for nowhere"),
    (
        "search/search_depth.py",
        ("--model", "nowhere", "--prompts", "one.txt", "--images", "1"),
        "cannot load the model",
    ),
    ("search/search_depth.py", ("--scheduler", "fast"), "unknown scheduler 'fast'"),
    ("search/search_depth.py", ("--device", "gpu9"), "--device gpu9"),
    ("search/search_depth.py", ("--dtype", "int8"), "--dtype int8"),
    ("search/search_depth.py", ("--out", "full"), "holds a front already"),
    ("search/search_depth.py", ("--out", "one.txt/run"), "cannot write to one.txt/run"),
    ("search/search_ratio.py", (), "run search/search_depth.py first"),
    ("search/search_ratio.py", ("--depths", "none.json"), "no file and no shipped strategy"),
    ("search/search_ratio.py", ("--depths", "emoji-sd-depth", "--ratios", "0,0.9"), "ratios go from 0 to 0.75"),
    ("search/search_ratio.py", ("--depths", "emoji-sd-depth", "--score", "x"), "score must be one of"),
    ("search/search_ratio.py", ("--depths", "emoji-sd-depth", "--latency", "no"), "--latency 'no'"),
    ("search/search_ratio.py", ("--depths", "emoji-sd-depth", "--pick", "best"), "--pick 'best'"),
    ("search/search_ratio.py", ("--depths", "emoji-sd-depth", "--recover-from", "hope"), "recover_from must be one of"),
    ("scripts/generate.py", ("--strategy", "one.txt", "rose"), "one.txt is not JSON"),
    ("scripts/generate.py", ("--strategy", "emoji-sd-depth", "--pick", "speedup=1000", "rose"), "1000 times as fast"),
    ("scripts/generate.py", ("--strategy", "dato-published", "--pick", "speedup=2", "rose"), "nothing to pick"),
    ("scripts/generate.py", ("--strategy", "dato-published", "--out", "one.txt", "rose"), "cannot write to one.txt"),
    (
        "scripts/generate.py",
        ("--strategy", "dato-published", "--height", "20", "rose"),
        "--height must be a multiple of 8",
    ),
    ("scripts/generate.py", ("--strategy", "[/x]", "rose"), "no shipped strategy '[/x]'"),
    ("search/search_depth.py", ("--min-quality", "nan"), "--min-quality nan: give a finite number"),
    ("search/search_joint.py", ("--ratios", "0,0.9"), "ratios go from 0 to 0.75"),
    ("search/search_joint.py", ("--pruning", "gamma=1"), "--pruning: unknown setting 'gamma'; known are score, sx"),
    ("search/search_joint.py", ("--pruning", "sx"), "--pruning 'sx': give KEY=VALUE, as in diff_gamma=0.1"),
    ("search/search_joint.py", ("--pruning", "=4"), "--pruning '=4': give KEY=VALUE"),
    ("search/search_joint.py", ("--pruning", "sx=wide"), "sx must be a whole number of at least 1, not 'wide'"),
    ("search/search_joint.py", ("--pruning", "sx=4", "--pruning", "sx=2"), "--pruning: sx is given twice"),
    ("search/search_joint.py", ("--pruning", "score=dato", "--score", "sito"), "--score is given twice"),
    ("search/search_joint.py", ("--pruning", "align_cfg=true", "--guidance-scale", "1"), "guidance 1 has none"),
    ("search/search_joint.py", ("--preset", "paper", "--pruning", "choose_every=2"), "needs shared=True"),
    ("search/search_ratio.py", ("--depths", "emoji-sd-depth", "--pruning", "shared=maybe"), "shared must be true or"),
    ("search/search_depth.py", ("--preset", "paper"), "give the folder as --image-reward"),
    ("search/search_depth.py", ("--preset", "paper"), "--quality psnr or ssim or clip-score needs no file"),
    ("search/search_joint.py", ("--workers", "2", "--ray-address", "127.0.0.1:1"), "--ray-address 127.0.0.1:1"),
    ("scripts/compare_searches.py", ("--methods", "magic"), "unknown search 'magic'"),
    ("scripts/evaluate.py", ("none.json",), "no file and no shipped strategy"),
    ("scripts/evaluate.py", ("--metrics", "psnr,beauty"), "--metrics: unknown metric 'beauty'"),
    ("scripts/evaluate.py", ("--metrics", "fid", "--images", "2"), "give a folder as --real"),
    ("scripts/evaluate.py", ("--protocol", "coco"), "give --captions"),
    ("scripts/generalise.py", ("none.json",), "no file and no shipped strategy"),
    ("scripts/generalise.py", ("emoji-sd-depth", "--schedulers", "fast"), "--schedulers: unknown scheduler 'fast'"),
    ("scripts/generalise.py", ("emoji-sd-depth", "--guidance", "high"), "--guidance 'high'"),
    ("scripts/pruned_tokens.py", ("rose", "--model", "nowhere"), "cannot load the model"),
    ("scripts/evaluate.py", ("--protocol", "imagenet", "--prompts", "one.txt"), "leave out --prompts"),
    ("scripts/evaluate.py", ("--protocol", "cifar"), "--protocol 'cifar': known are imagenet, coco, file"),
    ("scripts/evaluate.py", ("--protocol", "file"), "give --prompts"),
    ("scripts/evaluate.py", ("--images", "75"), "75 prompts are asked for"),
    ("scripts/evaluate.py", ("--points", "2", "--pick", "knee"), "give --points or --pick"),
    ("scripts/evaluate.py", ("stock.json", "--images", "2", "--methods", ""), "cannot be called 'stock'"),
    ("scripts/evaluate.py", ("SiTo.json",), "called SiTo: rename one"),
    ("scripts/evaluate.py", ("--metrics", "image-reward", "--image-reward", "nowhere"), "cannot load ImageReward"),
    ("scripts/evaluate.py", ("--metrics", "fid", "--real", "full"), "full: no pictures there"),
    ("scripts/evaluate.py", ("dato-published", "--pick", "best", "--images", "2"), "nothing to pick"),
    (
        "scripts/evaluate.py",
        ("dato-published", "--model", "nowhere"),
        "give --prompts or --protocol for nowhere",
    ),
]


@pytest.mark.parametrize(("script", "arguments", "message"), BAD)
def test_bad_input_is_one_line_and_exit_code_2(run, tmp_path, monkeypatch, script, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.txt").write_text("a prompt\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "pareto.json").write_text("kept")
    for name in ("stock", "SiTo"):
        (tmp_path / f"{name}.json").write_text(Schedule.full(51).to_json())
    code, printed, errors = run(script, *arguments)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert code == 2 and "Traceback" not in errors and printed == ""
    assert lines[-1].startswith("error: ") and message in lines[-1], errors
    assert (tmp_path / "full" / "pareto.json").read_text() == "kept"


@pytest.mark.parametrize(
    "script",
    [
        "search/search_depth.py",
        "search/search_ratio.py",
        "search/search_joint.py",
        "scripts/generate.py",
        "scripts/evaluate.py",
        "scripts/pruned_tokens.py",
    ],
)
def test_help_is_there(run, script):
    code, printed, _ = run(script, "--help")
    assert code == 0 and "Usage" in printed and "--model" in printed
