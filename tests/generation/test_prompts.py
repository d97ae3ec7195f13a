"""Prompts from files: what ends a prompt, and captions of COCO that are not as they should be."""

import json

import pytest

from dato import DatoError
from dato.generation.prompts import coco_captions, read_prompts


def test_only_line_feeds_end_a_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    prompts = [
        "a cat\u2028and a dog",
        "a form\x0cfeed",
        "next\x85line",
        "a\u2029b",
        "a\rb",
        "\x1cfile\x1dgroup\x1erecord",
    ]
    file.write_bytes("\r\n".join(prompts).encode() + b"\n\n \x0c \nlast")
    assert read_prompts(file) == [*(prompt.strip() for prompt in prompts), "last"]


def coco(tmp_path, *images):
    file = tmp_path / "captions.json"
    entries = [{"image_id": image, "id": number, "caption": f"caption {number}"} for number, image in enumerate(images)]
    file.write_text(json.dumps({"annotations": entries}))
    return file


def test_captions_of_images_that_are_numbers_or_names(tmp_path):
    assert sorted(coco_captions(coco(tmp_path, 2, 1, 2), 2)) == ["caption 0", "caption 1"]
    assert sorted(coco_captions(coco(tmp_path, "b", "a", "b"), 2)) == ["caption 0", "caption 1"]


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ((1, "2"), "some of its image_ids are numbers and some are text"),
        ((1, None), "the image_id of caption 1 is None"),
        ((None, None), "the image_id of caption 0 is None"),
        ((1, [2]), r"the image_id of caption 1 is \[2\]"),
        ((1, float("nan")), "the image_id of caption 1 is nan"),
        ((1, True), "the image_id of caption 1 is True"),
    ],
)
def test_images_without_a_usable_id(images, message, tmp_path):
    with pytest.raises(DatoError, match=message) as raised:
        coco_captions(coco(tmp_path, *images), 1)
    assert "captions.json" in str(raised.value) and "\n" not in str(raised.value)


def test_a_caption_without_a_usable_number(tmp_path):
    file = tmp_path / "captions.json"
    for number in ("Infinity", "NaN", "null", '"x"'):
        file.write_text(f'{{"annotations": [{{"image_id": 1, "id": {number}, "caption": "a"}}]}}')
        with pytest.raises(DatoError, match="not COCO's captions"):
            coco_captions(file, 1)
