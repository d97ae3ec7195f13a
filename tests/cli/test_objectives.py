"""Searches by the objectives that need files, ImageReward and FID, from the command line to fronts that load.

ImageReward is the small random model of the tests. FID has a small random network in the place of InceptionV3: a
Fréchet distance of its 2048 features takes half a minute.
"""

from pathlib import Path

import pytest
import torch
from conftest import save_pictures
from even_table import measured
from torch import nn

import dato
from dato import load_front
from dato.generation.sampling import Sampling, generate
from dato.metrics import Setup, load_metric

IMAGE_REWARD = Path(__file__).parents[1] / "data" / "image_reward"
FEATURES = 4
# A search of seconds. Its times are not looked at, so nothing is timed.
FEW = ("--pop-size", 3, "--generations", 1, "--rounds", 0, "--latency", "table", "--quiet")
SMALL = ("--steps", 3, "--guidance-scale", 1, "--height", 32, "--width", 32)
DEPTH = ("search/search_depth.py", "--preset", "paper", *SMALL, *FEW, "--out", "depth")
RATIO = ("search/search_ratio.py", *FEW, "--depths", "depth", "--pick", "knee", "--ratios", "0,0.5", "--out", "ratio")


@pytest.fixture(autouse=True)
def table(monkeypatch):
    """The latency table is the same in every search, as if a clock ran evenly."""
    monkeypatch.setattr("dato.search.study.measure_table", measured)


@pytest.fixture
def inception(tmp_path, monkeypatch):
    """A file of random weights, and the small network that is made of it."""

    def network(weights):
        small = nn.Sequential(nn.Conv2d(3, FEATURES, 8, 8), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        small.load_state_dict(weights)
        return small

    monkeypatch.setattr("dato.metrics.inception.FEATURES", FEATURES)
    monkeypatch.setattr("dato.metrics.inception._network", network)
    generator = torch.Generator().manual_seed(0)
    weights = {
        "0.weight": torch.randn(FEATURES, 3, 8, 8, generator=generator) / 8,
        "0.bias": torch.randn(FEATURES, generator=generator) / 4,
    }
    path = tmp_path / "inception.pth"
    torch.save(weights, path)
    return path


@pytest.fixture
def real(tmp_path):
    """A small folder of real pictures."""
    folder = tmp_path / "real"
    folder.mkdir()
    save_pictures(folder, [(3, 64, 64)] * 8, seed=4)
    return folder


def judged_again(pipe, front, point, metric):
    """The quality of a point by the images that its schedule gives a user."""
    conditions = front.conditions
    dato.set_scheduler(pipe, point.scheduler or conditions["scheduler_name"])
    dato.apply_patch(pipe, point.schedule)
    height, width = conditions["height"], conditions["width"]
    sampling = Sampling(point.steps, conditions["guidance_scale"], height, width, batch_size=conditions["batch_size"])
    images = generate(pipe, conditions["prompts"], sampling).images
    dato.remove_patch(pipe)
    return metric(images, conditions["prompts"], images)


def check(pipe, path, name, kind, setup):
    """Check that a front is one of this objective, and that its qualities are the metric's of the points' images."""
    front, metric = load_front(path), load_metric(name, setup)
    assert front.conditions["quality"] == name and front.conditions["search"]["kind"] == kind
    for point in (*front.points, front.baseline, *front.references.values()):
        assert point.quality == point.metrics[name] and "psnr" in point.metrics
    for point in (front.points[0], front.points[-1], front.baseline):
        assert judged_again(pipe, front, point, metric) == pytest.approx(point.quality, rel=1e-3, abs=1e-4)
    for faster, better in zip(front.points, front.points[1:], strict=False):
        assert faster.latency_ms < better.latency_ms and faster.quality < better.quality
    assert len({point.quality for point in front.references.values()}) > 2  # the objective tells schedules apart
    return front


def test_image_reward_is_searched_by_depths_and_then_by_ratios(run, pipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quality = ("--quality", "image-reward", "--image-reward", IMAGE_REWARD, "--min-quality", -10)
    code, _, errors = run(*DEPTH, *quality, "--images", 2)
    assert code == 0, errors
    setup = Setup(image_reward=IMAGE_REWARD)
    depth = check(pipe, "depth", "image-reward", "depth", setup)
    # The front's objective and its file, without a word.
    code, _, errors = run(*RATIO, "--images", 2)
    assert code == 0, errors
    front = check(pipe, "ratio", "image-reward", "ratio", setup)
    assert depth.conditions["image_reward"] == front.conditions["image_reward"] == str(IMAGE_REWARD)


@pytest.mark.filterwarnings("ignore:FID of 4 images")
def test_fid_is_searched_by_depths_and_then_by_ratios(run, pipe, inception, real, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = ("--inception", inception, "--real", real)
    code, _, errors = run(*DEPTH, "--quality", "fid", *files, "--images", 4, "--min-quality", 1e6)
    assert code == 0, errors
    setup = Setup(inception=inception, real=real)
    depth = check(pipe, "depth", "fid", "depth", setup)
    # A distance: lower is better, so dato has it with the other sign. The floor is given as the field writes it.
    assert all(-1e6 < point.quality < 0 for point in depth.points) and depth.conditions["search"]["min_quality"] == 1e6
    code, _, errors = run(*RATIO, "--preset", "paper", "--quality", "fid", "--images", 4)
    assert code == 0, errors
    front = check(pipe, "ratio", "fid", "ratio", setup)
    assert all(point.quality < 0 for point in front.points)
    for conditions in (depth.conditions, front.conditions):
        assert conditions["real"] == str(real) and conditions["inception"] == str(inception)
