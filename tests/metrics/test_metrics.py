"""Metrics: they rank images as expected, compare each image with its own prompt, and errors name what is wrong."""

import shutil

import numpy as np
import pytest
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from safetensors.torch import load_file, save_file
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity as distance
from torchvision.models import AlexNet_Weights, alexnet

from dato import DatoError, emoji_sd
from dato.generation.sampling import Sampling, generate
from dato.metrics import METRICS, Setup, load_metric
from dato.metrics.clip import FrechetDistance, PickScore, clip_model

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
    features = clip_model(setup).image_features(images).double().numpy()
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
    features = clip_model(setup).image_features(images).double()
    path = tmp_path / "own.safetensors"
    save_file({"mean": features.mean(0), "covariance": torch.cov(features.T).contiguous()}, path)
    assert FrechetDistance(Setup(statistics=path))(images, PROMPTS, images) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("name", ["psnr", "ssim", "clip-score", "frechet", "pick-score"])
def test_measurements_do_not_depend_on_batches_or_order(images, name):
    metric = load_metric(name, Setup(pick_score=emoji_sd.CLIP))
    other = (images + 0.05).clamp(0, 1)
    whole = metric.measure(other, PROMPTS, images)
    parts = [metric.measure(other[i : i + 1], PROMPTS[i : i + 1], images[i : i + 1]) for i in (2, 0, 1)]
    assert whole.shape[0] == 3 and whole.device.type == "cpu"
    assert torch.allclose(torch.cat(parts)[[1, 2, 0]], whole, atol=1e-4, rtol=1e-5)
    assert metric(other, PROMPTS, images) == pytest.approx(metric.summary(whole), rel=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (900, 40)])
@pytest.mark.parametrize("name", ["psnr", "ssim", "clip-score", "frechet", "pick-score"])
def test_images_of_any_size_and_prompts_of_any_length_are_measured(name, size):
    metric = load_metric(name, Setup(pick_score=emoji_sd.CLIP))
    random = torch.Generator().manual_seed(0)
    images, references = (torch.rand(2, 3, *size, generator=random) for _ in range(2))
    measured = metric.measure(images, ["", "word " * 500], references)
    assert len(measured) == 2 and measured.isfinite().all()
    if name in ("psnr", "ssim"):
        same = metric.measure(images, ["", ""], images)
        assert (same > measured).all() and len(metric.measure(images[:1], [""], images[:1])) == 1


def test_pick_score_is_the_cosine_in_the_models_own_scale(setup, images, tmp_path, monkeypatch):
    score = load_metric("pick-score", Setup(pick_score=emoji_sd.CLIP))
    clip = clip_model(setup)
    expected = clip.model.logit_scale.exp() * (clip.image_features(images) * clip.text_features(PROMPTS)).sum(1)
    assert torch.allclose(score.measure(images, PROMPTS, images), expected, atol=1e-4)
    assert score(images, PROMPTS, images) > score(images, PROMPTS[1:] + PROMPTS[:1], images)
    # PickScore's checkpoint is published without a tokenizer and a preprocessor.
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(emoji_sd.CLIP / name)
    monkeypatch.setattr(PickScore, "PROCESSOR", str(emoji_sd.CLIP))
    borrowed = load_metric("pick-score", Setup(pick_score=bare))
    assert torch.equal(borrowed.measure(images, PROMPTS, images), score.measure(images, PROMPTS, images))
    with pytest.raises(DatoError, match="cannot load a CLIP model from"):
        load_metric("pick-score", Setup(pick_score=tmp_path / "nowhere"))
    (bare / "preprocessor_config.json").symlink_to(emoji_sd.CLIP / "preprocessor_config.json")
    with pytest.raises(DatoError, match="there are no files of a CLIPTokenizer"):
        load_metric("clip-score", Setup(clip=bare))


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\n", b"", None])
def test_damaged_weights_of_a_clip_are_named(content, tmp_path):
    folder = shutil.copytree(emoji_sd.CLIP, tmp_path / "clip")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(DatoError, match=r"model\.safetensors is damaged"):
        load_metric("clip-score", Setup(clip=folder))


def test_lpips_is_torchmetrics_distance_for_each_image(images, tmp_path, monkeypatch):
    hub = tmp_path / "checkpoints"
    hub.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = AlexNet_Weights.IMAGENET1K_V1.url
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DatoError, match=f"fetch {url} and put it into {hub}"):
        patch.setattr(torch.hub, "download_url_to_file", offline)
        load_metric("lpips", Setup())
    torch.manual_seed(0)
    torch.save(alexnet().state_dict(), hub / url.rpartition("/")[2])
    metric = load_metric("lpips", Setup())
    other = (images + 0.2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    own = -metric.measure(other, PROMPTS, images)
    for i in range(3):
        pair = other[i : i + 1], images[i : i + 1]
        assert own[i].item() == pytest.approx(distance(*pair, "alex", normalize=True).item(), rel=1e-4)
    assert (own > 1e-3).all() and metric(images, PROMPTS, images) == 0
    tiny = metric.measure(other[..., :9, :12], PROMPTS, images[..., :9, :12])
    assert tiny.shape == (3,) and tiny.isfinite().all()


def offline(*_, **__):
    raise OSError("no route to host")


def test_the_clip_model_is_loaded_once(setup):
    assert clip_model(setup) is clip_model(setup)


def test_what_cannot_be_had_is_named(setup, tmp_path, images):
    with pytest.raises(DatoError, match=f"unknown quality metric 'beauty'; known are {', '.join(METRICS)}"):
        load_metric("beauty", setup)
    with pytest.raises(DatoError, match="needs statistics of real pictures: give a file as `statistics`"):
        load_metric("frechet", Setup(statistics=None))
    (tmp_path / "bad.safetensors").write_text("no")
    for path in (tmp_path / "missing.safetensors", tmp_path / "bad.safetensors"):
        with pytest.raises(DatoError, match="no statistics of real pictures"):
            load_metric("frechet", Setup(statistics=path))
    with pytest.raises(DatoError, match="at least 2 images"):
        load_metric("frechet", setup)(images[:1], PROMPTS[:1], images[:1])
    with pytest.raises(DatoError, match="cannot load a CLIP"):
        load_metric("clip-score", Setup(clip=tmp_path / "nowhere"))
