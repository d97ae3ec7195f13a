"""Metrics: they rank what has to be ranked, pair prompts with their own images, and name what is wrong."""

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.torch import load_file, save_file

from dato import DatoError, emoji_sd
from dato.quality import METRICS, FrechetDistance, Setup, load_metric
from dato.sampling import Sampling, generate

PROMPTS = ["red apple on a white background", "dog face on a blue background", "rose on a yellow background"]


@pytest.fixture(scope="module")
def setup():
    return Setup()


@pytest.fixture(scope="module")
def images(_embedded):
    return generate(_embedded, PROMPTS, Sampling(steps=12)).images


def test_images_are_floats_from_0_to_1(images):
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.float32
    assert images.min() >= 0 and images.max() <= 1


def test_clip_score_falls_when_prompts_are_shuffled(setup, images):
    score = load_metric("clip-score", setup)
    own = score(images, PROMPTS, images)
    assert own > score(images, PROMPTS[1:] + PROMPTS[:1], images) + 10
    assert own == pytest.approx(score(images.flip(0), PROMPTS[::-1], images), abs=1e-3)


@pytest.mark.parametrize("name", ["psnr", "ssim"])
def test_fidelity_falls_with_noise_and_is_highest_for_the_same_images(setup, images, name):
    metric = load_metric(name, setup)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    values = [metric((images + s * noise).clamp(0, 1), PROMPTS, images) for s in (0, 0.01, 0.05, 0.2)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert values[0] == pytest.approx({"psnr": 100.0, "ssim": 1.0}[name])


def test_psnr_is_the_mean_over_images_of_its_definition(setup, images):
    other = (images + 0.1 * torch.arange(3).view(3, 1, 1, 1) + 0.05).clamp(0, 1)
    expected = np.mean(
        [-10 * np.log10(((a - b) ** 2).mean()) for a, b in zip(images.numpy(), other.numpy(), strict=True)]
    )
    assert load_metric("psnr", setup)(other, PROMPTS, images) == pytest.approx(expected, abs=1e-3)


def test_frechet_distance_is_pytorch_fids_on_clip_features(setup, images):
    metric = load_metric("frechet", setup)
    value = metric(images, PROMPTS, images)
    features = setup.clip.image_features(images).double().numpy()
    real = load_file(emoji_sd.STATISTICS)
    distance = calculate_frechet_distance(
        features.mean(0),
        np.cov(features, rowvar=False),
        real["mean"].double().numpy(),
        real["covariance"].double().numpy(),
    )
    assert value == pytest.approx(-100 * distance, rel=1e-6)
    assert value > metric(torch.rand(3, 3, 64, 64), PROMPTS, images)  # noise is further from real pictures


def test_frechet_distance_to_itself_is_zero(setup, images, tmp_path):
    features = setup.clip.image_features(images).double()
    path = tmp_path / "own.safetensors"
    save_file({"mean": features.mean(0), "covariance": torch.cov(features.T).contiguous()}, path)
    assert FrechetDistance(Setup(statistics=path))(images, PROMPTS, images) == pytest.approx(0, abs=1e-3)


def test_the_clip_model_is_loaded_once(setup):
    assert setup.clip is setup.clip


def test_what_cannot_be_had_is_named(setup, tmp_path, images):
    with pytest.raises(DatoError, match=f"unknown quality metric 'beauty'; known are {', '.join(METRICS)}"):
        load_metric("beauty", setup)
    with pytest.raises(DatoError, match="give --statistics"):
        load_metric("frechet", Setup(statistics=None))
    (tmp_path / "bad.safetensors").write_text("no")
    for path in (tmp_path / "missing.safetensors", tmp_path / "bad.safetensors"):
        with pytest.raises(DatoError, match="no statistics of real pictures"):
            load_metric("frechet", Setup(statistics=path))
    with pytest.raises(DatoError, match="at least 2 images"):
        load_metric("frechet", setup)(images[:1], PROMPTS[:1], images[:1])
    with pytest.raises(DatoError, match="cannot load a CLIP"):
        load_metric("clip-score", Setup(clip_id=tmp_path / "nowhere"))
