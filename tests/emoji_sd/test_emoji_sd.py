"""The embedded model as it is shipped, and the CLIP that measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from dato.emoji_sd import CLIP, FOLDER, PIPE, STATISTICS, pictures, prompts
from dato.errors import DatoError
from dato.metrics.clip_model import Clip


def test_splits_are_disjoint_and_cover_every_name():
    search, evaluation = prompts("search"), prompts("evaluation")
    assert len(set(search)) == len(set(evaluation)) == len(pictures.NAMES) == 74
    assert not set(search) & set(evaluation)
    for split in (search, evaluation):
        assert sorted(prompt.split(" on a ")[0] for prompt in split) == sorted(pictures.NAMES)
        counts = [sum(f" {colour} " in prompt for prompt in split) for colour in pictures.COLOURS]
        assert max(counts) - min(counts) <= 1


def test_shipped_prompts_follow_the_rule():
    assert pictures.splits() == {split: prompts(split) for split in ("search", "evaluation")}
    # The captions that the shipped weights were not trained on, so the rule must never change.
    expected = ["tomato on a blue background", "grapes on a white background", "watermelon on a yellow background"]
    assert prompts("evaluation")[:3] == expected
    assert prompts("evaluation")[-1] == "lady beetle on a white background"


def test_shipped_files_are_few_and_safe():
    files = [file for file in FOLDER.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert sum(file.stat().st_size for file in files) < 40e6
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".md", ".py"}
    for part in ("unet", "vae", "text_encoder"):
        assert list((PIPE / part).glob("*.safetensors"))


def test_unet_has_twelve_rungs():
    config = json.loads((PIPE / "unet" / "config.json").read_text())
    levels = len(config["block_out_channels"])
    assert 1 + levels * config["layers_per_block"] + (levels - 1) == 12


def test_statistics_are_a_distribution():
    found = load_file(STATISTICS)
    mean, covariance = found["mean"], found["covariance"]
    assert mean.shape == (128,) and covariance.shape == (128, 128)
    assert found["count"].item() == 74 * 8 * 2
    torch.testing.assert_close(covariance, covariance.T)
    assert torch.linalg.eigvalsh(covariance).min() > -1e-12
    # E|x|^2 = |mean|^2 + trace(cov) (n - 1) / n, and every feature has unit length.
    second_moment = mean.square().sum() + covariance.trace() * (1 - 1 / found["count"].item())
    assert second_moment.item() == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def random_clip(tmp_path_factory):
    """A CLIP with random weights whose towers do tell inputs apart, and the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = CLIPTokenizer.from_pretrained(CLIP)
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = towers | special | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    image = towers | {"image_size": 48, "patch_size": 16}
    torch.manual_seed(3)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=24))
    processor = CLIPImageProcessor(
        size={"shortest_edge": 56}, crop_size={"height": 48, "width": 48}, image_mean=[0.5, 0.4, 0.3]
    )
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def smooth_pictures(count, height, width):
    # Smooth, since 8-bit resizing clips between its two passes, which shows on white noise alone.
    coarse = torch.rand(count, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (fine * 255).round() / 255


PROMPTS = ["owl on a red background", "tomato", "", "a very long caption " * 20]


@pytest.mark.parametrize("size", [(97, 131), (120, 64), (48, 48)])
def test_clip_agrees_with_the_checkpoints_own_processor(random_clip, size):
    images = smooth_pictures(len(PROMPTS), *size)
    files = [Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)) for image in images]
    processor = CLIPProcessor.from_pretrained(random_clip)
    inputs = processor(
        text=PROMPTS, images=files, return_tensors="pt", padding="max_length", max_length=16, truncation=True
    )
    with torch.no_grad():
        outputs = CLIPModel.from_pretrained(random_clip)(**inputs)
    clip = Clip(random_clip)
    torch.testing.assert_close(clip.preprocess(images), inputs["pixel_values"], atol=0.02, rtol=0)
    torch.testing.assert_close(clip.image_features(images), outputs.image_embeds, atol=2e-3, rtol=0)
    # The tolerance means nothing unless other pictures' features are far outside it.
    assert (outputs.image_embeds - outputs.image_embeds.roll(1, 0)).abs().amax(1).min() > 2e-2
    torch.testing.assert_close(clip.text_features(PROMPTS), outputs.text_embeds, atol=1e-5, rtol=0)
    expected = 100 * (outputs.image_embeds * outputs.text_embeds).sum(1).clamp(min=0)
    torch.testing.assert_close(clip.score(images, PROMPTS), expected, atol=0.2, rtol=0)


def test_clip_features_do_not_depend_on_the_batch(random_clip):
    images = smooth_pictures(5, 60, 50)
    whole, small = Clip(random_clip), Clip(random_clip, batch_size=2)
    torch.testing.assert_close(whole.image_features(images), small.image_features(images), atol=1e-6, rtol=1e-5)
    alone = torch.cat([whole.text_features([prompt]) for prompt in PROMPTS])
    torch.testing.assert_close(whole.text_features(PROMPTS), alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.image_features(images).norm(dim=1), torch.ones(5))
    assert whole.image_features(images[:0]).shape == (0, 24)


def test_clip_score_pairs_by_place():
    clip = Clip(CLIP)
    colours = torch.tensor(list(pictures.COLOURS.values())) / 255
    images = colours[:, :, None, None].expand(-1, 3, 64, 64)
    captions = [pictures.caption("owl", colour) for colour in pictures.COLOURS]
    scores = clip.score(images, captions)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])
    reordered = clip.score(images[order], [captions[index] for index in order])
    torch.testing.assert_close(reordered, scores[order])
    assert ((scores >= 0) & (scores <= 100)).all()


def test_clip_rejects_bad_input(random_clip, tmp_path):
    clip = Clip(random_clip)
    with pytest.raises(DatoError, match="one prompt per image"):
        clip.score(torch.zeros(2, 3, 48, 48), ["one"])
    with pytest.raises(DatoError, match=r"CLIP needs float images of shape \(n, 3, H, W\)"):
        clip.image_features(torch.zeros(3, 48, 48))
    with pytest.raises(DatoError, match=r"\[0, 1\]"):
        clip.image_features(torch.full((1, 3, 48, 48), 255.0))
    with pytest.raises(DatoError, match="cannot load"):
        Clip(tmp_path)
