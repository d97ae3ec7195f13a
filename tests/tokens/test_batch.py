"""An image does not depend on its neighbours: in a batch, tokens are pruned as they are for the image alone.

All is compared in float64. In float32 stock itself rounds a batch otherwise. Then the choice between tokens that are
equal to rounding may fall otherwise, too.
"""

import math
from itertools import pairwise

import pytest
import torch
from conftest import PROMPTS, tiny_unet, unet_inputs
from tiny_pipelines import tiny
from which_tests import thorough

import dato
from dato import Pruning, Schedule
from dato.pruning import SCORES

SETTINGS = (
    *({"score": score} for score in SCORES),
    *({"recover_from": recovery, "noise_alpha": 3.0} for recovery in ("kept", "past")),
    {"similarity": "local", "noise_alpha": 3.0},
    {"similarity": "local", "score": "dato", "recover_from": "past", "sx": 4},
    {"reduction": "merge", "noise_alpha": 3.0, "cross_attention": True, "feed_forward": True},
    {"shared": False, "noise_alpha": 3.0, "max_downsample": 2},
    {"choose_every": 2, "score": "dato", "max_downsample": 2},
    {"align_cfg": True, "score": "IV"},
)


def draw(pipe, images, **options):
    """Latents of some of the images; image i has its own prompt and noise."""
    generators = [torch.Generator().manual_seed(i) for i in images]
    options |= {"num_inference_steps": 5, "output_type": "latent"}
    return pipe(**options | {"prompt": [PROMPTS[i] for i in images]}, generator=generators).images


def decibels(a, b):
    error = (a - b).double().square().mean().item()
    return 10 * math.log10(b.double().square().max().item() / max(error, 1e-30))


@pytest.mark.parametrize("guidance_scale", [3.0, *thorough(1.0)])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_an_image_is_the_same_alone_and_at_any_place_in_a_batch(settings, guidance_scale):
    pipe, kwargs = tiny("SD 1.x")
    options = kwargs | {"guidance_scale": guidance_scale}
    schedule = Schedule([8, 8, 8, 3, 0, 8], [0.25, 0.5, 0.5, 0.5, 0, 0.5], rungs=8, pruning=Pruning(**settings))
    dato.apply_patch(pipe.to(torch.float64), schedule)
    alone = [draw(pipe, [i], **options)[0] for i in range(3)]
    for images in ([0, 1, 2], [2, 0], [1, 2, 0]):
        for i, image in zip(images, draw(pipe, images, **options), strict=True):
            assert decibels(image, alone[i]) > 200


def test_three_parts_of_guidance_get_the_same_numbers_alone_and_in_a_batch():
    pipe, kwargs = tiny("InstructPix2Pix")
    dato.apply_patch(pipe.to(torch.float64), prune_ratio=0.5, score="IV")
    alone = draw(pipe, [1], **kwargs)
    both = draw(pipe, [0, 1], **kwargs | {"image": kwargs["image"].repeat(2, 1, 1, 1)})
    assert decibels(both[1], alone[0]) > 200


def bases(unet, x, text, **pruning):
    """The base tokens (B, M) of one call."""
    dato.apply_patch(unet, prune_ratio=0.5, score="IV", **pruning)
    chosen = []
    unet._dato_patch.pruner.listener = lambda factor, number, grid, selection: chosen.append(selection.base)
    with torch.no_grad():
        unet(x, 500, text)
    return chosen[0]


def test_without_a_pipeline_the_latents_tell_which_images_belong_together():
    unet, (x, text) = tiny_unet(), unet_inputs(batch=2)
    alone = bases(unet, x[:1], text[:1])
    # Two images, and a batch that no number of parts divides.
    for images in ([0, 1], [1, 0, 1, 1, 0]):
        assert torch.equal(bases(unet, x[images], text[images]), alone.expand(len(images), -1))
    for parts in (2, 3):
        one, two = x[:1].repeat(parts, 1, 1, 1), x.repeat(parts, 1, 1, 1)
        guided = bases(unet, one, text[:1].repeat(parts, 1, 1))
        assert all(not torch.equal(*pair) for pair in pairwise(guided))
        both = bases(unet, two, text.repeat(parts, 1, 1))
        assert torch.equal(both, guided.repeat_interleave(2, dim=0))
        aligned = bases(unet, two, text.repeat(parts, 1, 1), align_cfg=True)
        assert torch.equal(aligned, both[:1].expand_as(aligned))
