"""FLOPs against counts of what really runs, against formulas, and against the shares known of SD 1.5."""

import pytest
import torch
from conftest import tiny_unet, unet_inputs
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from which_tests import thorough

import dato
from dato.generation.random_models import random_pipeline
from dato.prediction.flops import call_flops, flop_share, schedule_flops
from dato.strategies import load_strategy

SD15 = (2, 4, 64, 64)  # 512 x 512 pixels with guidance
SMALL = (2, 4, 16, 16)


def really(unet, schedule, **extra):
    """FLOPs of each call, counted while computing."""
    x, text = unet_inputs()
    counts = []
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), dato.patched(unet, schedule):
        for call in range(len(schedule)):
            with FlopCounterMode(display=False) as counter:
                unet(x, 999 - call, text, **extra)
            counts.append(counter.get_total_flops())
    return counts


def small_unet():
    """4 rungs, of which the first two attend at full resolution."""
    return tiny_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
    )


# Shares of a whole call of SD 1.5 by depth and ratio, without the choice of tokens.
SHARES = {
    **{(1, 0.0): 0.079, (2, 0.0): 0.224, (3, 0.0): 0.380, (4, 0.0): 0.470, (7, 0.0): 0.760, (10, 0.0): 0.960},
    **{(1, 0.3): 0.064, (1, 0.5): 0.057, (1, 0.7): 0.051, (3, 0.7): 0.244, (12, 0.5): 0.889, (12, 0.7): 0.864},
}


def test_sd15_has_its_known_flops():
    unet = random_pipeline("sd15-random", device="meta").unet
    # One run counts all that is asked below; a run for each would need a whole call before each.
    depths, ratios = zip((12, 0.0), *SHARES, strict=True)
    schedule_flops(unet, dato.Schedule(depths, ratios), sample_shape=SD15)
    whole = call_flops(unet, 12, sample_shape=SD15)
    assert whole == pytest.approx(1606e9, rel=1e-3)
    assert call_flops(unet, 0, sample_shape=SD15) == 0
    for (depth, ratio), share in SHARES.items():
        # The first block chooses tokens: cosines of the 3072 others with the 1024 base tokens.
        choice = 2 * 2 * 3072 * 1024 * 320 / whole if ratio else 0
        assert call_flops(unet, depth, ratio, sample_shape=SD15) / whole == pytest.approx(share + choice, abs=0.001)

    published = load_strategy("dato-published")
    assert flop_share(unet, published, sample_shape=SD15) == pytest.approx(0.177, abs=0.001)
    assert flop_share(unet, published, sample_shape=SD15, calls=102) == pytest.approx(0.177 / 2, abs=0.001)


def test_emoji_sd_has_its_known_flops(pipe):
    known = {1: 0.098, 2: 0.282, 3: 0.473, 4: 0.550, 8: 0.876, 11: 0.978}
    shape = {"sample_shape": (2, 4, 32, 32), "text_tokens": 16}
    schedule_flops(pipe.unet, dato.Schedule((12, *known)), **shape)
    whole = call_flops(pipe.unet, 12, **shape)
    assert whole == pytest.approx(4.97e9, rel=2e-3)
    for depth, share in known.items():
        assert call_flops(pipe.unet, depth, **shape) / whole == pytest.approx(share, abs=0.0006)


@pytest.mark.parametrize("kind", ["sd", *thorough("xl")])
def test_what_is_counted_is_what_runs(kind):
    unet, rungs, extra = tiny_unet(), 12, {}
    if kind == "xl":  # with SDXL's embedding of sizes and of the pooled text
        sizes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 16}
        unet, rungs = tiny_unet("xl", addition_embed_type="text_time", **sizes), 9
        extra = {"added_cond_kwargs": {"text_embeds": torch.zeros(2, 16), "time_ids": torch.zeros(2, 6)}}
    schedule = dato.Schedule((rungs, 1, 3, 0, rungs, rungs), (0, 0.5, 0, 0.5, 0.5, 0.7), rungs=rungs)
    counts = really(unet, schedule, **extra)
    assert schedule_flops(unet, schedule, sample_shape=SMALL, text_tokens=5) == sum(counts)
    assert flop_share(unet, schedule, sample_shape=SMALL, text_tokens=5) == sum(counts) / (counts[0] * len(schedule))
    for depth, ratio, count in zip(schedule.depths, schedule.ratios, counts, strict=True):
        assert call_flops(unet, depth, ratio, sample_shape=SMALL, text_tokens=5) == count


@pytest.mark.parametrize(
    "pruning",
    [
        *(dato.Pruning(score=score) for score in ("sito", "dato", "I", "II")),
        dato.Pruning(shared=False, cross_attention=True, feed_forward=True),
        dato.Pruning(recover_from="kept"),
        dato.Pruning(recover_from="past"),
        dato.Pruning(reduction="merge", max_downsample=2, sx=4),
    ],
    ids=lambda p: f"{p.score}-{p.recover_from}-{p.reduction}-{p.shared}",
)
def test_every_kind_of_pruning_is_counted_as_it_runs(pruning):
    unet, schedule = small_unet(), dato.Schedule((4, 2, 4), (0, 0.5, 0.5), rungs=4, pruning=pruning)
    assert schedule_flops(unet, schedule, sample_shape=SMALL, text_tokens=5) == sum(really(unet, schedule))


def test_spectrums_depth_0_runs_the_head():
    unet, schedule = small_unet(), dato.Schedule((4, 0), orders=1, rungs=4, forecast="chebyshev")
    head = 2 * 2 * 16 * 16 * (4 * 8 * 9)  # conv_out
    whole = call_flops(unet, 4, sample_shape=SMALL, text_tokens=5)
    assert schedule_flops(unet, schedule, sample_shape=SMALL, text_tokens=5) == whole + head
    # Of order 0 it hands back the prediction, as every rule does.
    reuse = dato.Schedule((4, 0), orders=0, rungs=4, forecast="chebyshev")
    assert schedule_flops(unet, reuse, sample_shape=SMALL, text_tokens=5) == whole


def test_attention_is_counted_by_its_formula():
    # In the number of tokens only attention to each other is quadratic: 4 B N^2 C in each block.
    few, more, most = (call_flops(small_unet(), 4, sample_shape=(2, 4, height, 16)) for height in (16, 32, 48))
    blocks = [(3, 8, 1), (1, 16, 4)]  # how many, channels, tokens fewer by
    assert most - 2 * more + few == sum(2 * n * 4 * 2 * (256 // fewer) ** 2 * c for n, c, fewer in blocks)


def test_a_patched_unet_is_left_as_it_is():
    unet, schedule = small_unet(), dato.Schedule.uniform(4, 2, 1, rungs=4)
    with dato.patched(unet, schedule):
        call_flops(unet, 4, sample_shape=SMALL)
        assert dato.current_schedule(unet) == schedule


@pytest.mark.parametrize(
    ("depth", "ratio", "shape", "message"),
    [
        (5, 0, SMALL, "depth 5"),
        (4, 0.9, SMALL, "at most"),
        (4, 1.5, SMALL, "ratio 1.5"),
        (4, 0, (2, 4, 16), "four whole numbers"),
        (4, 0, (2, 3, 16, 16), "takes in 4"),
    ],
)
def test_what_does_not_fit_is_an_error(depth, ratio, shape, message):
    with pytest.raises(dato.DatoError, match=message):
        call_flops(small_unet(), depth, ratio, sample_shape=shape)
