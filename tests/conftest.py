"""What the tests share: the embedded pipeline, tiny random UNets, and a way to generate."""

from __future__ import annotations

import logging
import os
import runpy
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need a hub
if "PYTEST_XDIST_WORKER" in os.environ:  # threads of several processes would wait for each other's
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import devices
import jsonschema
import pytest
import torch
import which_tests
from diffusers import UNet2DConditionModel
from matrix import written
from PIL import Image
from torch import Tensor

import dato
from dato.evaluation.pool import Recipe
from dato.generation.pipelines import load_pipeline
from dato.generation.sampling import Sampling
from dato.prediction.latency_measure import measure_table

logging.getLogger("torch.__trace").propagate = False  # pytest would keep every line of what torch.compile does
ROOT = Path(__file__).parent.parent
# A front that was shipped once. Tests that say what is in a front use it, so that another shipped one changes nothing.
FRONT_FILE = ROOT / "tests" / "data" / "front.json"
# A search of seconds.
SMALL = (
    "--preset",
    "quick",
    "--images",
    2,
    "--pop-size",
    4,
    "--generations",
    2,
    "--rounds",
    1,
    "--latency",
    "table",
)
# Without guidance, and of a quarter of the pixels.
SMALL_DEPTHS = (*SMALL, "--depths", "0,1", "--guidance-scale", 1, "--height", 32, "--width", 32)
PROMPTS = ["red apple on a blue background", "dog face on a pink background", "rose on a white background"]


def pytest_addoption(parser):
    which_tests.add_options(parser)
    devices.add_options(parser)


def pytest_configure(config):
    devices.configure(config)


def pytest_collection_modifyitems(config, items):
    which_tests.choose(config, items)
    devices.choose(config, items)


def pytest_terminal_summary(terminalreporter, config):
    line = devices.summary(config)
    if line is not None:
        terminalreporter.write_line(line)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Write the table: of the tests that say which cell of it they are."""
    file = session.config.getoption("--matrix")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not file or reporter is None or hasattr(session.config, "workerinput"):
        return
    found = {}
    for outcome in ("passed", "failed", "skipped"):
        for report in reporter.stats.get(outcome, []):
            for name, cell in report.user_properties:
                if name == "cell":
                    found[tuple(cell)] = outcome
    from pipeline_features import SAMPLERS, cells

    page = written({cell: found.get(cell, "") for cell in cells()}, SAMPLERS)
    Path(file).write_text(page, encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def _fronts_follow_their_schema():
    """Compare every front that a test writes with the JSON Schema."""
    schema, to_dict = jsonschema.Draft202012Validator(dato.front_schema()), dato.Front.to_dict

    def checked(front):
        data = to_dict(front)
        schema.validate(data)
        return data

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dato.Front, "to_dict", checked)
        yield


@pytest.fixture(scope="session")
def _embedded():
    return load_pipeline(device=devices.device())


@pytest.fixture
def pipe(_embedded):
    """The embedded pipeline, unpatched and with its own scheduler before and after every test."""
    scheduler = _embedded.scheduler
    yield _embedded
    dato.remove_patch(_embedded)
    _embedded.scheduler = scheduler


def draw(pipe, steps: int = 4, images: int = 1, seed: int = 0, **options) -> Tensor:
    """Latents (images, 4, h, w) of a generation; the same arguments give the same noise."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(images)]
    options = {"guidance_scale": 3.0, "output_type": "latent"} | options
    prompts = options.pop("prompt", PROMPTS[:images])
    return pipe(prompts, num_inference_steps=steps, generator=generators, **options).images


def tiny_unet(kind: str = "sd", seed: int = 0, **overrides) -> UNet2DConditionModel:
    """A UNet with random weights in the shape of SD 1.x (12 rungs) or SDXL (9 rungs), for 16 x 16 latents."""
    torch.manual_seed(seed)
    if kind == "sd":
        config = {
            "block_out_channels": (8, 8, 16, 16),
            "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
            "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
            "attention_head_dim": 2,
        }
    else:
        config = {
            "block_out_channels": (8, 8, 16),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 3),
            "attention_head_dim": (1, 2, 4),
            "use_linear_projection": True,
        }
    config |= {"sample_size": 16, "norm_num_groups": 4, "cross_attention_dim": 8} | overrides
    return UNet2DConditionModel(**config).eval().to(devices.device())


def unet_inputs(batch: int = 2, size: tuple[int, int] = (16, 16), seed: int = 0) -> tuple[Tensor, Tensor]:
    """Latents (batch, 4, h, w) and text states (batch, 5, 8) for a `tiny_unet`."""
    generator = torch.Generator().manual_seed(seed)
    return devices.randn(batch, 4, *size, generator=generator), devices.randn(batch, 5, 8, generator=generator)


def toy_recipe(steps: int, further: int, batch_size: int, *metrics: str, size: int = 32) -> Recipe:
    """A recipe of the embedded model with two prompts, for images of `steps` and `further` steps."""
    sampling = Sampling(steps, 3.0, size, size, batch_size=batch_size)
    where = "cpu", "float32", "dpm++2m"
    return Recipe("emoji-sd", *where, (PROMPTS[0], PROMPTS[2]), sampling, (further,), metrics)


def save_pictures(folder: Path, images, seed: int = 0, suffix: str = "png") -> None:
    """Write images (n, 3, h, w), or noise of these shapes, as files."""
    generator = torch.Generator().manual_seed(seed)
    for number, image in enumerate(images):
        image = image if isinstance(image, Tensor) else torch.rand(image, generator=generator)
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{seed}-{number:03}.{suffix}")


@pytest.fixture(scope="session")
def make_pipe(_embedded):
    """Make independent pipelines with a tiny random UNet around the embedded model's other parts."""
    import copy

    from diffusers import StableDiffusionPipeline

    def make(seed: int = 0) -> StableDiffusionPipeline:
        parts = {**_embedded.components, "unet": tiny_unet(seed=seed, cross_attention_dim=128, sample_size=8)}
        parts["scheduler"] = copy.deepcopy(_embedded.scheduler)
        tiny = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        tiny.set_progress_bar_config(disable=True)
        return tiny

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where a module's tests put their runs, for one another."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run one of the scripts as a user would; (exit code, standard output, standard error)."""

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return call


@pytest.fixture
def one_round_of_measuring(monkeypatch):
    """Measure latency tables in one round, for tests that look at what a search does and not at times."""
    monkeypatch.setattr("dato.search.study.measure_table", partial(measure_table, rounds=1))


def call(monkeypatch, capsys, *arguments):
    """Run the command `dato`: (exit code, standard output, standard error)."""
    from dato.cli.main import main

    monkeypatch.setattr(sys, "argv", ["dato", *map(str, arguments)])
    code = 0
    try:
        main()
    except SystemExit as left:
        code = left.code or 0
    printed = capsys.readouterr()
    return code, printed.out, printed.err
