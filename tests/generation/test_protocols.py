"""The papers' prompts and settings."""

import json
import shutil

import pytest
from conftest import call

from dato import DatoError, emoji_sd
from dato.generation.guidance import guidance_of
from dato.generation.prompts import coco_captions, imagenet_prompts
from dato.generation.protocols import PROTOCOLS


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


@pytest.fixture
def evaluated(monkeypatch, capsys, tmp_path):
    """Run `dato evaluate` up to where images would be made, and return what they would be made with."""

    def run(*arguments):
        recipes = []

        def stop(recipe, *_, **__):
            recipes.append(recipe)
            raise DatoError("stopped")

        monkeypatch.setattr("dato.experiments.paper_evaluation.evaluate", stop)
        code, _, errors = call(monkeypatch, capsys, "evaluate", "--out", tmp_path / "out", *arguments)
        assert code == 2 and ("stopped" in errors) == bool(recipes), errors
        return recipes[0] if recipes else errors

    return run


@pytest.mark.parametrize(
    ("protocol", "model", "expected"),
    [
        # Both papers: 50 PLMS steps, 512 x 512, guidance 7.5 of SD 1.x and 9.0 of SD 2.x.
        (("imagenet", "--images", 4), "sd15-random", ("plms", 50, 7.5, 512, 512)),
        (("coco", "--images", 4), "sd21-random", ("plms", 50, 9.0, 512, 512)),
        (("file",), "sd15-random", ("plms", 50, 7.5, 512, 512)),
        (("imagenet", "--images", 4), "emoji-sd", ("plms", 50, 7.5, None, None)),  # it has a size of its own
    ],
)
def test_images_are_made_as_in_the_papers(evaluated, captions, tmp_path, protocol, model, expected):
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    of_prompts = {"coco": ("--captions", captions), "file": ("--prompts", tmp_path / "prompts.txt")}
    recipe = evaluated("--protocol", *protocol, "--model", model, *of_prompts.get(protocol[0], ()))
    sampling = recipe.sampling
    assert (recipe.scheduler, sampling.steps, sampling.guidance_scale, sampling.height, sampling.width) == expected
    prompts = {"imagenet": imagenet_prompts(4), "coco": coco_captions(captions, 4), "file": ["a cat", "a dog"]}
    assert list(recipe.prompts) == prompts[protocol[0]]


def test_what_is_given_replaces_the_papers_setting(evaluated):
    options = ("--steps", 20, "--scheduler", "ddim", "--guidance-scale", 3, "--height", 256, "--width", 128)
    recipe = evaluated("--protocol", "imagenet", "--images", 2, "--model", "sd15-random", *options)
    sampling = recipe.sampling
    assert (recipe.scheduler, sampling.steps, sampling.guidance_scale) == ("ddim", 20, 3.0)
    assert (sampling.height, sampling.width) == (256, 128)


def test_an_unknown_protocol_is_refused_with_those_that_are_known(evaluated):
    assert "--protocol 'laion': known are imagenet, coco, file" in evaluated("--protocol", "laion")
    assert PROTOCOLS == ("imagenet", "coco", "file")
