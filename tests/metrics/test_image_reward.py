"""ImageReward: scores equal those of the authors' package (tests/data/image_reward), and errors say what is wrong.

scripts/make_image_reward_fixture.py made the small random model, the pictures and the scores.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dato.metrics.image_reward_model
import dato.metrics.image_reward_weights
from dato import DatoError
from dato.metrics import Setup, load_metric
from dato.metrics.image_reward import IMAGE_REWARD
from dato.metrics.image_reward_model import ImageRewardModel

FOLDER = Path(__file__).parents[1] / "data" / "image_reward"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
PROMPTS = EXPECTED["prompts"]
SCORES = torch.tensor(EXPECTED["scores"])  # (prompts, pictures)


def picture(name):
    pixels = np.array(Image.open(FOLDER / f"{name}.png").convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def same_size(n):
    return picture("large")[..., :96].unfold(2, 40, 15).permute(0, 2, 1, 4, 3).flatten(0, 1)[:n]


def largest_error(model, prompts=PROMPTS):
    found = [model.score(picture(x).expand(len(prompts), -1, -1, -1), prompts) for x in EXPECTED["pictures"]]
    return (torch.stack(found, 1) - SCORES).abs().max().item()


@pytest.fixture(scope="module")
def model():
    return ImageRewardModel(FOLDER)


@pytest.fixture
def folder(tmp_path):
    """The checkpoint as it is published: ImageReward.pt, float32."""
    weights = {name: x.float() if x.is_floating_point() else x for name, x in weights_of_fixture().items()}
    torch.save(weights, tmp_path / "ImageReward.pt")
    for name in ("med_config.json", "vocab.txt"):
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def weights_of_fixture():
    return load_file(FOLDER / "ImageReward.safetensors")


def test_scores_are_the_packages(model):
    assert SCORES.shape == (len(PROMPTS), len(EXPECTED["pictures"]))
    assert SCORES.std(0).min() > 0.1 and SCORES.std(1).min() > 0.1  # else agreement would say nothing
    assert largest_error(model) < 1e-4


def test_prompts_count_and_so_do_their_places(model):
    assert largest_error(model, PROMPTS[1:] + PROMPTS[:1]) > 0.5


@pytest.mark.parametrize(
    ("name", "value"),
    [("layer_norm_eps", 1e-5), ("num_attention_heads", 2), ("hidden_act", "relu")],
)
def test_med_config_counts(folder, name, value):
    path = folder / "med_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    assert largest_error(ImageRewardModel(folder)) > 1e-3


def test_what_no_file_tells_counts(model, monkeypatch):
    assert largest_error(ImageRewardModel(FOLDER, vision_heads=1)) > 0.1
    with monkeypatch.context() as patch:
        patch.setattr(dato.metrics.image_reward_weights, "VISION_EPS", 1e-5)
        assert largest_error(ImageRewardModel(FOLDER)) > 0.1
    monkeypatch.setattr(dato.metrics.image_reward_model, "MAX_TOKENS", 34)
    assert largest_error(model) > 0.1


def test_a_published_checkpoint_loads_by_folder_or_file_and_without_med_config(folder):
    assert largest_error(ImageRewardModel(folder)) < 1e-4
    assert largest_error(ImageRewardModel(str(folder / "ImageReward.pt"))) < 1e-4
    path = folder / "med_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_attention_heads": 1}))
    images, prompts = same_size(3), PROMPTS[:3]
    with_config = ImageRewardModel(folder).score(images, prompts)
    path.unlink()  # then as in BERT-base: one head for 64 dimensions
    assert torch.equal(ImageRewardModel(folder).score(images, prompts), with_config)


def test_the_metric_is_the_mean_score(model):
    metric = load_metric("image-reward", Setup(image_reward=FOLDER))
    images, prompts = same_size(3), PROMPTS[:3]
    measured = metric.measure(images, prompts, images)
    assert measured.shape == (3,) and measured.dtype == torch.float32
    assert metric(images, prompts, images) == pytest.approx(model.score(images, prompts).mean().item(), abs=1e-6)
    assert isinstance(metric.model, ImageRewardModel) and not metric.lower_is_better


def test_scores_do_not_depend_on_batches_or_order(model):
    images, prompts = same_size(5), PROMPTS
    scores = model.score(images, prompts)
    assert scores.std() > 0.1
    alone = torch.cat([model.score(image[None], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
    in_twos = ImageRewardModel(FOLDER, batch_size=2).score(images, prompts)
    backwards = model.score(images.flip(0), prompts[::-1]).flip(0)
    for other in (alone, in_twos, backwards):
        torch.testing.assert_close(other, scores, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (1, 90), (700, 30), (224, 224)])
def test_any_size_and_any_prompt(model, size):
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert model.score(images, ["", "word " * 500]).isfinite().all()


def test_no_images_and_broken_images(model):
    assert model.score(torch.zeros(0, 3, 8, 8), []).shape == (0,)
    assert model.precision_error(torch.zeros(0, 3, 8, 8), []) == 0
    images = same_size(3).clone()
    images[1, 0, 0, 0] = torch.nan
    assert model.score(images, PROMPTS[:3]).isfinite().tolist() == [True, False, True]


def test_images_are_scored_as_files_would_be(model):
    images = same_size(2)
    between = (images + 0.4 / 255).clamp(0, 1)
    assert torch.equal(model.score(between, PROMPTS[:2]), model.score(images, PROMPTS[:2]))


def test_wrong_images_and_prompts_are_named(model):
    images = same_size(2)
    with pytest.raises(DatoError, match="one prompt per image, not 1 for 2"):
        model.score(images, ["one"])
    with pytest.raises(DatoError, match=r"values in \[0, 1\]"):
        model.score(images * 255, PROMPTS[:2])
    for wrong in (images[0], (images * 255).byte(), images[:, :1]):
        with pytest.raises(DatoError, match=r"float images of shape \(n, 3, H, W\)"):
            model.score(wrong, PROMPTS[: len(wrong)])


def test_precision_error_is_that_of_the_precision(model):
    images, prompts = same_size(4), PROMPTS[:4]
    assert model.precision_error(images, prompts) == 0
    half = ImageRewardModel(FOLDER, dtype=torch.bfloat16)
    error = half.precision_error(images, prompts)
    assert 1e-5 < error < 0.2
    expected = (half.score(images, prompts) - model.score(images, prompts)).abs().max().item()
    assert error == pytest.approx(expected, abs=1e-6)


def test_another_models_checkpoint_is_named(folder):
    weights = torch.load(folder / "ImageReward.pt", weights_only=True)

    def refused(changed, message):
        torch.save(changed, folder / "ImageReward.pt")
        with pytest.raises(DatoError, match=message) as error:
            ImageRewardModel(folder)
        assert "not ImageReward's checkpoint: " in str(error.value) and "\n" not in str(error.value)

    bias = "mlp.layers.0.bias"
    refused({k: v for k, v in weights.items() if k != bias}, f"it lacks {bias}$")
    refused({k: v for k, v in weights.items() if "crossattention" not in k}, "it lacks blip.text_encoder.*crossatt")
    refused({k: v for k, v in weights.items() if "visual_encoder" not in k}, "it lacks blip.visual_encoder")
    refused({**weights, "blip.surplus": weights[bias], "more": weights[bias]}, "it has blip.surplus and 1 more$")
    refused({**weights, bias: weights[bias][:-1]}, f"of another shape is {bias}$")
    refused({"state": weights}, "no table of weights by name")
    refused({}, "it lacks")
    ignored = {**weights, "blip.itm_head.weight": weights[bias]}
    assert any(name.startswith("blip.vision_proj.") for name in ignored)
    torch.save(ignored, folder / "ImageReward.pt")
    assert largest_error(ImageRewardModel(folder)) < 1e-4


@pytest.mark.parametrize("name", ["ImageReward.pt", "ImageReward.safetensors"])
def test_a_corrupt_file_is_named(folder, name):
    (folder / "ImageReward.pt").unlink()
    for content, message in (
        (b"", " is damaged: it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", " is damaged: it is a pointer of Git LFS"),
        (b"no weights", ": not ImageReward's checkpoint"),
        ((FOLDER / "ImageReward.safetensors").read_bytes()[:1000], ": not ImageReward's checkpoint"),
    ):
        (folder / name).write_bytes(content)
        with pytest.raises(DatoError, match=f"{name}{message}"):
            ImageRewardModel(folder)


def test_a_suffix_in_capitals(folder):
    (folder / "ImageReward.pt").unlink()
    (folder / "MODEL.SAFETENSORS").write_bytes((FOLDER / "ImageReward.safetensors").read_bytes())
    assert largest_error(ImageRewardModel(folder / "MODEL.SAFETENSORS")) < 1e-4


def test_wrong_settings_and_vocabulary_are_named(folder):
    (folder / "vocab.txt").write_text((FOLDER / "vocab.txt").read_text() + "surplus\n")
    known = json.loads((FOLDER / "med_config.json").read_text())["vocab_size"]
    with pytest.raises(DatoError, match=f"has {known} tokens, and the tokenizer has {known + 1}"):
        ImageRewardModel(folder)
    for content in ("{", "[]"):
        (folder / "med_config.json").write_text(content)
        with pytest.raises(DatoError, match=r"med_config.json: not the settings of a BERT"):
            ImageRewardModel(folder)


def test_what_is_not_there_is_named_with_what_to_fetch(folder, monkeypatch):
    # The hub is offline in tests, so the default is as unknown as a folder that does not exist.
    advice = (
        r"ImageReward\.pt and med_config\.json .*/THUDM/ImageReward .*vocab\.txt .*give the folder as `image_reward`"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    (folder / "empty").mkdir()
    for source in (IMAGE_REWARD.default, folder / "nowhere", folder / "empty"):
        with pytest.raises(DatoError, match=f"cannot load ImageReward from .*{advice}") as error:
            load_metric("image-reward", Setup(image_reward=source))
        assert "\n" not in str(error.value)
    (folder / "vocab.txt").unlink()
    monkeypatch.setattr("dato.metrics.image_reward_weights.TOKENIZER", str(folder / "no-tokenizer"))
    with pytest.raises(
        DatoError, match=r"cannot load ImageReward's tokenizer from .*give the folder as `image_reward`"
    ):
        ImageRewardModel(folder)


def test_the_only_backend_is_transformers(folder):
    """Old journals may hold the other one, which ran the authors' package."""
    with pytest.raises(DatoError, match=r"the backend 'package' of ImageReward is gone.*: use 'transformers'") as error:
        load_metric("image-reward", Setup(image_reward=folder, image_reward_backend="package"))
    assert "\n" not in str(error.value)
    with pytest.raises(DatoError, match="unknown backend 'jax' of ImageReward; the only one is 'transformers'"):
        load_metric("image-reward", Setup(image_reward=folder, image_reward_backend="jax"))
    named = load_metric("image-reward", Setup(image_reward=folder, image_reward_backend="transformers"))
    assert largest_error(named.model) < 1e-4
