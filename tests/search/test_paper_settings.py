"""The settings of the papers in one table with their sources, against the presets and against what fronts record.

Files without a folder are in `sd1/scripts` of the authors' repository EvelynZhang-epiclab/DaTo.
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import PROMPTS
from diffusers import EulerDiscreteScheduler
from even_table import measured

from dato import DatoError, Point, Pruning, Schedule, load_front
from dato.evaluation.evaluator import Evaluator
from dato.evaluation.judgement import Judgement
from dato.evaluation.pool import InProcess
from dato.evaluation.sample_pictures import sample_of
from dato.evaluation.stock import Stock
from dato.pruning import PAPER_RATIOS, SITO_PRUNING
from dato.search import search_depth, search_joint
from dato.search.options import DepthSearch, JointSearch, RatioSearch
from dato.search.presets import DATO_PRUNING, DEPTH_PRESETS, RATIO_PRESETS

IMAGE_REWARD = Path(__file__).parents[1] / "data" / "image_reward"


class Setting(NamedTuple):
    """A setting of a search of the preset paper.

    Attributes:
        recorded: Its place in a front's conditions.
        value: What it is there.
        preset: Its name and value in the preset; None: it is not there.
        source: Where the paper or the authors' code says so.
    """

    recorded: str
    value: Any
    preset: tuple[str, Any] | None
    source: str


BOTH = [
    Setting("search.preset", "paper", None, ""),
    Setting("quality", "image-reward", ("quality", "image-reward"), "README.md, section 4.1; search_depth.py, RM.load"),
    Setting("search.min_quality", 0.0, ("min_quality", 0.0), 'search_depth.py, search_ratio.py, out["G"]'),
    Setting("steps", 50, ("steps", (50,)), "search_depth.py, search_ratio.py, ddim_steps=50"),
    Setting("scheduler_name", "plms", ("scheduler", "plms"), "txt2img_search_new.py, PLMSSampler"),
    Setting("scheduler", "PNDMScheduler", None, "diffusers' name of PLMS"),
    Setting("calls", 51, None, "sd1/ldm/models/diffusion/plms.py: the first step calls the UNet twice"),
    Setting("guidance_scale", 7.5, ("guidance_scale", 7.5), "txt2img_search_new.py, scale=7.5"),
    Setting("search.from_uniform", False, ("from_uniform", False), "search_depth.py, ConstrainedSampling"),
    Setting("search.advised", False, ("advised", False), "search_depth.py: NSGA-II alone"),
    Setting("search.race", None, ("race", None), "search_depth.py: every candidate has all images"),
]
DEPTH = [
    *BOTH,
    Setting("search.depths", [0, 1, 12], ("depths", (0, 1)), "search_depth.py, allowed_values"),
    Setting("search.orders", [0], ("orders", (0,)), "datosd/patch.py: what is cached is used again as it is"),
    Setting("search.steps", [50], None, "search_depth.py, ddim_steps=50"),
    Setting("search.pop_size", 15, ("pop_size", 15), "search_depth.py, pop_size=15"),
    Setting("search.generations", 30, ("generations", 30), 'search_depth.py, ("n_gen", 30)'),
    Setting("search.crossover", [0.8, 15], ("crossover", (0.8, 15)), "search_depth.py, SBX(prob=0.8, eta=15)"),
    Setting("search.mutation", [0.8, 15], ("mutation", (0.8, 15)), "search_depth.py, PM(prob=0.8, eta=15)"),
    Setting("search.initial_whole_calls", [0, 1, 1], None, "search_depth.py, generate_individual"),
    Setting("number of prompts", 32, ("images", 32), "search_depth.py, num_lines=32"),
]
RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7)
RATIO = [
    *BOTH,
    Setting("search.ratios", [*RATIOS], ("ratios", RATIOS), "search_ratio.py, valid_ids"),
    Setting("search.pop_size", 25, ("pop_size", 25), "search_ratio.py, pop_size=25"),
    Setting("search.generations", 100, ("generations", 100), 'search_ratio.py, ("n_gen", 100)'),
    Setting("search.crossover", [0.7, 7], ("crossover", (0.7, 7)), "search_ratio.py, SBX(prob=0.7, eta=7)"),
    Setting("search.mutation", [0.4, 15], ("mutation", (0.4, 15)), "search_ratio.py, PM(prob=0.4, eta=15)"),
    Setting("number of prompts", 16, ("images", 16), "search_ratio.py, num_lines=16"),
]
# Settings of token pruning: name -> value and source.
DATOS_SETTINGS = {
    "score": ("dato", "datosd/dato.py, dst_score"),
    "diff_gamma": (0.1, "search_ratio.py, diff_gema=0.1"),
    "noise_alpha": (0.1, "search_ratio.py, noise_alpha=0.1"),
    "sim_beta": (1.0, "search_ratio.py, sim_beta=1"),
    "align_cfg": (True, "search_ratio.py, align_cfg=True"),
    "shared": (False, "datosd/patch.py: every datoBlock chooses"),
    "choose_every": (1, "datosd/patch.py: in every call"),
    "sx": (2, "datosd/patch.py, apply_patch"),
    "sy": (2, "datosd/patch.py, apply_patch"),
    "max_downsample": (None, "datosd/patch.py, max_downsample_ratio=1, the smallest of SD 1.x"),
    "self_attention": (True, "search_ratio.py, prune_selfattn_flag=True"),
    "cross_attention": (False, "datosd/patch.py, prune_crossattn_flag=False"),
    "feed_forward": (False, "datosd/patch.py, prune_mlp_flag=False"),
    "recover_from": ("base", "SiTo's and DaTo's papers: a pruned token gets its most similar base token's output"),
    "similarity": ("global", "datosd/dato.py: score_sim compares with all base tokens"),
    "reduction": ("prune", "datosd/dato.py, prune_tokens"),
}
# SiTo (AAAI 2025): the repository EvelynZhang-epiclab/SiTo and its table 1.
SITOS_SETTINGS = {
    "score": ("sito", "section 3.2: SimScore with noise"),
    "noise_alpha": (0.1, "README.md, noise_alpha"),
    "sim_beta": (1.0, "README.md, sim_beta"),
    "sx": (2, "README.md, sx"),
    "sy": (2, "README.md, sy"),
    "max_downsample": (None, "README.md, max_downsample_ratio=1, the smallest of SD 1.x and 2.x"),
    "self_attention": (True, "README.md, prune_selfattn_flag"),
    "cross_attention": (False, "README.md, prune_crossattn_flag"),
    "feed_forward": (False, "README.md, prune_mlp_flag"),
    "shared": (False, "every block chooses"),
    "align_cfg": (False, "section 3.2: every image of the batch chooses"),
    "similarity": ("global", "equation 3: all base tokens"),
    "reduction": ("prune", "figure 5a"),
}
SITO_RATIOS = {"a": 0.3, "b": 0.4, "c": 0.5, "d": 0.6, "e": 0.7}  # table 1


@pytest.mark.parametrize(("preset", "settings"), [(DEPTH_PRESETS["paper"], DEPTH), (RATIO_PRESETS["paper"], RATIO)])
def test_the_presets_are_the_papers(preset, settings):
    named = [setting.preset for setting in settings if setting.preset is not None]
    assert {name: getattr(preset, name) for name, _ in named} == dict(named)
    assert preset.for_all_models and preset.minutes is None


def test_the_papers_token_pruning():
    dato, sito = DATO_PRUNING.to_dict(), SITO_PRUNING.to_dict()
    assert {name: dato[name] for name in DATOS_SETTINGS} == {name: value for name, (value, _) in DATOS_SETTINGS.items()}
    assert {name: sito[name] for name in SITOS_SETTINGS} == {name: value for name, (value, _) in SITOS_SETTINGS.items()}
    assert PAPER_RATIOS == SITO_RATIOS


def at(conditions, place):
    if place == "number of prompts":
        return len(conditions["prompts"])
    return reduce(lambda entries, name: entries[name], place.split("."), conditions)


def check_recorded(path, settings, **other):
    """Compare a front's conditions with settings; `other` has those that were overridden."""
    conditions = load_front(path).conditions
    expected = {s.recorded: s.value for s in settings} | {f"search.{name}": value for name, value in other.items()}
    assert {place: at(conditions, place) for place in expected} == expected


@pytest.fixture
def instant(monkeypatch):
    """Searches whose candidates are judged without images. All else is real: the model, its sampler, the metrics."""

    def judge(self, schedule, *rivals):
        cost = float(sum(schedule.depths) * (1 - 0.3 * max(schedule.ratios)) + 1)
        steps, metrics = self.steps_of[len(schedule)], {"measured_ms": cost}
        point = Point(schedule, float(schedule.depths.count(12)), cost, 613 / cost, metrics, steps=steps)
        return Judgement(point, (point.quality,) * len(self.prompts), len(self.prompts))

    def make_pool(recipe, *_):
        pool = InProcess(recipe.evaluator())
        whole = Point(Schedule.full(pool.facts.calls), 100.0, 613.0, 1.0, {"measured_ms": 613.0})
        images = torch.zeros(len(recipe.prompts), 3, 8, 8)
        pool.stock = Stock(whole, images, sample_of(images))
        return pool

    monkeypatch.setattr(Evaluator, "judge", judge)
    monkeypatch.setattr(Evaluator, "warm_up", lambda self: None)
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    monkeypatch.setattr("dato.evaluation.ray_pool.make_pool", make_pool)


def test_fronts_of_both_searches_record_the_papers_settings(instant, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--preset", "paper", "--pop-size", 3, "--generations", 2, "--rounds", 0, "--quiet")
    code, _, errors = run("search/search_depth.py", *few, "--image-reward", IMAGE_REWARD, "--out", "depth")
    assert code == 0, errors
    check_recorded("depth", DEPTH, pop_size=3, generations=2)
    code, _, errors = run("search/search_ratio.py", *few, "--depths", "depth", "--out", "ratio")
    assert code == 0, errors
    check_recorded("ratio", RATIO, pop_size=3, generations=2)
    front = load_front("ratio")
    pruning = {name: value for name, (value, _) in DATOS_SETTINGS.items()}
    assert front.conditions["search"]["pruning"] | pruning == front.conditions["search"]["pruning"]
    assert front.points[0].schedule.pruning == front.baseline.schedule.pruning == DATO_PRUNING
    assert front.conditions["image_reward"] == str(IMAGE_REWARD)  # the front's own, not named again


def test_nothing_overridden_is_the_papers_population(instant, run, tmp_path):
    options = ("--preset", "paper", "--rounds", 0, "--quiet", "--quality", "psnr", "--out", tmp_path / "run")
    code, _, errors = run("search/search_depth.py", *options)
    assert code == 0, errors
    # The floor is ImageReward's.
    settings = [s for s in DEPTH if s.recorded not in ("quality", "search.min_quality")]
    check_recorded(tmp_path / "run", settings, min_quality=None)
    assert load_front(tmp_path / "run").conditions["search"]["candidates"] > 200


def test_settings_of_pruning_by_key_and_value_are_recorded(instant, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--preset", "paper", "--steps", 4, "--pop-size", 3, "--generations", 1, "--rounds", 0, "--quiet")
    few = (*few, "--quality", "psnr")
    given = {"cross_attention": True, "sx": 4, "sim_beta": 0.5, "noise_alpha": 0.2, "similarity": "local", "seed": 7}
    given |= {"align_cfg": False, "shared": True, "choose_every": 2, "score": "sito", "recover_from": "kept"}
    typed = [word for name, value in given.items() for word in ("--pruning", f"{name}={str(value).lower()}")]
    code, _, errors = run("search/search_joint.py", *few, *typed, "--out", "joint")
    assert code == 0, errors
    expected = DATO_PRUNING.to_dict() | given
    front = load_front("joint")
    assert front.conditions["search"]["pruning"] == expected == front.baseline.schedule.pruning.to_dict()
    code, _, errors = run("search/search_joint.py", "--resume", "joint", "--quiet")  # the journal holds them
    assert code == 0 and load_front("joint") == front, errors


PYTHON = {"preset": "paper", "quality": "psnr", "steps": [3], "pop_size": 2, "generations": 1, "rounds": 0}
PYTHON |= {"latency": "table", "batch_size": 1}


def test_in_python_the_preset_has_its_sampler_and_guidance_too(make_pipe, monkeypatch):
    monkeypatch.setattr("dato.search.study.measure_table", measured)
    pipe = make_pipe()
    pipe.scheduler = sampler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    front = search_depth(pipe, PROMPTS[:1], **PYTHON)
    assert front.conditions["scheduler_name"] == "plms" and front.conditions["guidance_scale"] == 7.5
    assert pipe.scheduler is sampler
    given = {"scheduler": "ddim", "guidance_scale": 2.0, "pruning": {"feed_forward": True}}
    other = search_joint(pipe, PROMPTS[:1], **PYTHON, **given)
    assert other.conditions["scheduler_name"] == "ddim" and other.conditions["guidance_scale"] == 2
    assert other.baseline.schedule.pruning == Pruning(**DATO_PRUNING.to_dict() | {"feed_forward": True})


def test_the_preset_asks_for_image_reward_unless_another_quality_is_given():
    assert DepthSearch(preset="paper").settings().quality == "image-reward"
    assert RatioSearch(preset="paper").settings().quality == "image-reward"
    assert DepthSearch().settings().quality == DepthSearch(preset="quick").settings().quality == "psnr"
    assert RatioSearch().settings().quality is None  # the front's
    for kind in (DepthSearch, RatioSearch, JointSearch):
        assert kind(preset="paper").settings().min_quality == 0
        assert kind(preset="paper", min_quality=-1.0).settings().min_quality == -1
        assert kind(preset="paper", quality="image-reward").settings().min_quality == 0
        assert kind(preset="paper", quality="fid").settings().min_quality is None
        assert kind(preset="paper", quality="fid", min_quality=30.0).settings().min_quality == 30


@pytest.mark.parametrize("kind", [RatioSearch, JointSearch])
def test_where_no_paper_is_asked_for_pruning_is_ours(kind):
    ours = kind(preset="quick").token_pruning(7.5)
    assert ours == Pruning(recover_from="past", similarity="local")
    assert kind(preset="quick", score="dato").token_pruning(7.5).align_cfg
    assert not kind(preset="quick", score="dato").token_pruning(1).align_cfg
    assert kind(preset="quick", score="II").token_pruning(1).similarity == "global"
    assert kind(preset="paper").token_pruning(7.5) == DATO_PRUNING
    assert not kind(preset="paper").token_pruning(1).align_cfg  # without guidance there are no halves
    whole = Pruning(score="V", feed_forward=True)
    assert kind(preset="quick", pruning=whole).token_pruning(7.5) == whole
    with pytest.raises(DatoError, match="`pruning`: give settings by name, as in"):
        kind(pruning=["sx"])
    with pytest.raises(DatoError, match="align_cfg aligns the halves of guidance, and guidance 1 has none"):
        kind(pruning={"align_cfg": True}).token_pruning(1)
