"""Masks over tokens follow the tokens that are kept: an IP-Adapter's, and that of self-attention."""

import pytest
import torch
from conftest import tiny_unet, unet_inputs
from devices import put
from tiny_pipelines import SIZE, sample, tiny

import dato
from dato import Schedule

TALL, WIDE = SIZE, SIZE // 2  # pixels


def masks(count, seed=0):
    """(1, count, TALL, WIDE)."""
    return torch.rand(1, count, TALL, WIDE, generator=torch.Generator().manual_seed(seed)).round()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("merge", [False, True])
def test_a_pruned_image_prompt_is_masked_as_the_kept_tokens_are(as_tensor, merge):
    pipe, kwargs = tiny("IP-Adapter")
    dato.apply_patch(pipe, prune_ratio=0.5, prune_crossattn_flag=True, reduction="merge" if merge else "prune")
    pruner, seen, running = pipe.unet._dato_patch.pruner, [], []
    block = pipe.unet.down_blocks[0].attentions[0].transformer_blocks[0]

    def before(module, args, kwargs):
        if not running:
            seen.append((args[0], kwargs, pruner._selection))

    block.norm2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    block.attn2.register_forward_pre_hook(before, with_kwargs=True)
    block.attn2.register_forward_hook(lambda module, args, output: None if running else seen.append(output))
    given = masks(1)
    size = {"height": TALL, "width": WIDE, "num_images_per_prompt": 2}
    extra = {"ip_adapter_masks": given[0][None] if as_tensor else [given]}
    sample(pipe, {**kwargs, **size, "cross_attention_kwargs": extra}, steps=2)
    shortened, (normed, arguments, selection), restored = seen[:3]
    assert shortened.shape[1] == selection.kept.shape[1] < selection.source.shape[1]

    # Each token attends by itself. So one kept token at a time, with its own value of the mask, gives the same.
    token_masks = torch.nn.functional.interpolate(given, (TALL // 2, WIDE // 2), mode="bicubic").flatten()
    running.append(True)
    dato.remove_patch(pipe)
    for image in range(len(normed)):
        for place in range(0, normed.shape[1], 7):
            token = selection.kept[image, place]
            value = token_masks[token]
            if merge:
                merged = selection.pruned[image][selection.source[image, selection.pruned[image]] == place]
                value = torch.stack([value, *token_masks[merged]]).mean()
            one = {**arguments, "ip_adapter_masks": [value.view(1, 1, 1, 1)]}
            with torch.no_grad():
                expected = block.attn2(normed[:, place : place + 1], **one)[image, 0]
            assert torch.allclose(restored[image, token], expected, atol=1e-5)


def test_masks_without_pruned_cross_attention_stay_as_they_are():
    pipe, kwargs = tiny("IP-Adapter")
    extra = {"cross_attention_kwargs": {"ip_adapter_masks": [masks(1)]}, "height": TALL, "width": WIDE}
    stock = sample(pipe, kwargs | extra)
    dato.apply_patch(pipe, Schedule.full(5, rungs=8), prune_crossattn_flag=True)
    assert torch.equal(sample(pipe, kwargs | extra), stock)


def test_a_mask_of_self_attention_hides_the_same_tokens():
    """What is hidden does not matter, whatever it holds."""
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    unet, (x, text) = tiny_unet(block_out_channels=(8,), **blocks), unet_inputs()
    dato.apply_patch(unet, prune_ratio=0.5, score="I")
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    seen = []
    attention.register_forward_pre_hook(lambda m, args, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True)
    mask = put((torch.rand(2, 256, generator=torch.Generator().manual_seed(1)) > 0.3).float())
    pruner, chosen = unet._dato_patch.pruner, []
    pruner.listener = lambda factor, number, grid, selection: chosen.append(selection.kept)
    with torch.no_grad():
        masked = unet(x, 500, text, attention_mask=mask).sample
        assert not torch.equal(masked, unet(x, 500, text).sample)
    assert torch.equal(seen[0][:, 0], (1 - mask.gather(1, chosen[0])) * -10000)
    assert masked.isfinite().all()
