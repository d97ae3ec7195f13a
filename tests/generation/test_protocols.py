"""The papers' prompts and settings."""

import json
import shutil

import pytest

from dato import DatoError, emoji_sd
from dato.generation.guidance import guidance_of
from dato.generation.prompts import coco_captions, imagenet_prompts


def test_imagenet_gives_every_class_twice():
    prompts = imagenet_prompts()
    assert len(prompts) == 2000 and prompts[:1000] == prompts[1000:] and "a photo of a tench" in prompts
    assert len(set(prompts)) >= 990  # a few classes share a name
    assert imagenet_prompts(20) == prompts[:20]
    with pytest.raises(DatoError, match="2001 prompts are asked for and ImageNet gives 2000"):
        imagenet_prompts(2001)


@pytest.fixture
def captions(tmp_path):
    entries = [
        {"image_id": image, "id": 100 * image - turn, "caption": f" image {image}\n caption {turn} "}
        for image in range(1, 41)
        for turn in range(3)
    ]
    path = tmp_path / "captions.json"
    path.write_text(json.dumps({"annotations": entries}))
    return path


def test_coco_gives_one_caption_of_each_of_many_images_and_always_the_same(captions):
    ten = coco_captions(captions, 10)
    assert ten == coco_captions(captions, 10) == coco_captions(captions, 20)[:10]
    assert len(set(coco_captions(captions, 40))) == 40
    assert all(text.endswith("caption 2") and text == text.strip() and "\n" not in text for text in ten)
    assert ten != sorted(ten)


def test_what_is_not_cocos_is_named(captions, tmp_path):
    with pytest.raises(DatoError, match="captions of 40 images, and 41 are asked for"):
        coco_captions(captions, 41)
    for content in ("[]", '{"annotations": [{"id": 1}]}', '{"annotations": 3}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DatoError, match=r"bad\.json: not COCO's captions"):
            coco_captions(tmp_path / "bad.json", 1)
    with pytest.raises(DatoError, match="cannot load the model"):
        guidance_of(str(tmp_path / "nowhere"))


def test_guidance_is_that_of_the_models_family(tmp_path):
    assert guidance_of("emoji-sd") == guidance_of(str(emoji_sd.PIPE)) == guidance_of("sd15-random") == 7.5
    assert guidance_of("sd21-random") == 9.0
    other = shutil.copytree(emoji_sd.PIPE, tmp_path / "other")
    config = json.loads((other / "unet" / "config.json").read_text())
    (other / "unet" / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 1024}))
    assert guidance_of(str(other)) == 9.0
