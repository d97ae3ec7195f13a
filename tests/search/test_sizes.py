"""Models whose images are not square: searched, planned, evaluated, timed and generated with, up to the front's use."""

import warnings

import pytest
import torch
from conftest import PROMPTS, SMALL_DEPTHS, call, draw, tiny_unet
from diffusers import StableDiffusionPipeline
from even_table import measured
from PIL import Image
from tiny_pipelines import tiny

import dato
from dato import DatoError, load_front
from dato.experiments.speed import sample_shape
from dato.generation.sampling import Sampling, generate, image_size
from dato.search import plan, search_depth, search_ratio
from dato.unet.speedup_rule import RuleSchedule

WIDE, SIZE = [8, 16], (16, 32)  # latents and pixels
FEW = {"preset": "quick", "pop_size": 4, "generations": 2, "rounds": 0}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    monkeypatch.setattr("dato.search.study.measure_table", measured)


@pytest.fixture
def wide(make_pipe):
    """A pipeline of 32 x 16 pixels."""
    parts = make_pipe().components
    parts["unet"] = tiny_unet(cross_attention_dim=128, sample_size=WIDE)
    pipe = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_search_of_a_wide_model_gives_a_front_that_is_used(wide, tmp_path):
    options = {"steps": [2, 4], "latency": "table", "guidance_scale": 3.0, **FEW}
    search_depth(wide, PROMPTS[:2], out=tmp_path / "depths", **options)
    front = load_front(tmp_path / "depths")
    assert (front.conditions["height"], front.conditions["width"]) == SIZE
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the run has the size of the search
        point = front.points[0]
        dato.apply_patch(wide, point)
        assert draw(wide, point.steps, guidance_scale=3.0).shape == (1, 4, *WIDE)
    pruned = search_ratio(wide, front, PROMPTS[:1], ratios=[0, 0.5], pick="knee", latency="measured", **FEW)
    assert (pruned.conditions["height"], pruned.conditions["width"]) == SIZE
    planned = plan(wide, PROMPTS[:2], 1.5, steps=6, guidance_scale=1.0)
    assert (planned.conditions["height"], planned.conditions["width"]) == SIZE
    assert dato.Front.from_dict(planned.to_dict()).points[0].speedup > 0


def test_the_rule_serves_a_wide_model(wide):
    assert dato.rule(wide, 20, 2.5) == RuleSchedule(wide.unet, 2.5).of_run(wide, range(20), 0, tuple(WIDE))
    dato.apply_patch(wide, speedup=2.0)
    assert draw(wide, 6).shape == (1, 4, *WIDE)


@pytest.mark.thorough
@pytest.mark.usefixtures("one_round_of_measuring")
def test_the_commands_serve_a_wide_model(wide, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wide.save_pretrained("wide")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def dato_command(*arguments):
        code, printed, errors = call(monkeypatch, capsys, *arguments)
        assert code == 0, printed + errors
        return printed

    common = ("--model", "wide", "--prompts", "prompts.txt", "--steps")
    dato_command("search", "depth", *SMALL_DEPTHS, *common, "2,4", "--scheduler", "ddim", "--out", "run", "--quiet")
    assert load_front("run").conditions["width"] == 32
    dato_command("generate", PROMPTS[0], "--strategy", "run", "--out", "images", "--repeats", 1)
    assert {Image.open(path).size for path in (tmp_path / "images").glob("*.png")} == {(32, 16)}
    few = ("--images", 2, "--metrics", "psnr", "--methods", "steps", "--pick", "knee")
    dato_command("evaluate", "run", "--model", "wide", "--prompts", "prompts.txt", *few, "--out", "evaluation")
    timed = ("--model", "wide", "--steps", 2, "--rounds", 1, "--depths", "1", "--ratios", "0.5", "--no-memory")
    assert "stock" in dato_command("benchmark", *timed, "--parts", "calls,images", "--out", "speed.json")


def test_a_size_is_what_is_given_else_the_models_own(wide):
    shapes = {(None, None): (16, 32), (32, None): (32, 32), (None, 16): (16, 16), (24, 40): (24, 40)}
    for (height, width), expected in shapes.items():
        sampling = Sampling(1, 1.0, height, width, batch_size=1)
        assert image_size(wide, sampling) == expected
        assert sample_shape(wide, sampling, 1) == (1, 4, expected[0] // 2, expected[1] // 2)
        latents = generate(wide, PROMPTS[:1], sampling, decode=False).images
        assert latents.shape == sample_shape(wide, sampling, 1)


def test_sdxl_and_models_without_a_size(make_pipe):
    pipe, kwargs = tiny("SDXL")
    pipe.unet.register_to_config(sample_size=(16, 24))
    sampling = Sampling(1, 1.0, batch_size=1)
    assert generate(pipe, [kwargs["prompt"]], sampling, decode=False).images.shape[2:] == (16, 24)
    pipe.unet.register_to_config(sample_size=None)
    with pytest.raises(DatoError, match="give `height` and `width`"):
        generate(pipe, [kwargs["prompt"]], sampling)
    with pytest.raises(DatoError, match="give `height` and `width`"):
        plan(pipe, PROMPTS[:2], 2.0, steps=6)
    assert len(dato.rule(pipe, 10, 2.0)) == 10
    assert torch.isfinite(generate(pipe, ["cat"], Sampling(1, 1.0, 32, 48, batch_size=1), decode=False).images).all()


def test_a_given_image_has_the_size_in_whatever_form():
    pipe, kwargs = tiny("ControlNet")
    tensor = kwargs["image"][..., :24]
    array = tensor.permute(0, 2, 3, 1).numpy()
    picture = Image.fromarray((array[0] * 255).astype("uint8"))
    for image in (tensor, [tensor[0]], array, [array[0]], picture, [picture], array[0, ..., 0]):
        sampling = Sampling(1, 1.0, batch_size=1, pipe_kwargs={"image": image})
        assert image_size(pipe, sampling) == (32, 24)
    assert image_size(pipe, Sampling(1, 1.0, 16, batch_size=1, pipe_kwargs={"image": picture})) == (16, 24)
    sampling = Sampling(1, 1.0, batch_size=1, pipe_kwargs={"image": picture})
    assert generate(pipe, [kwargs["prompt"]], sampling).images.shape[2:] == (32, 24)
