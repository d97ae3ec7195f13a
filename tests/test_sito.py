"""SiTo's own usage, as in its README: the authors' defaults and keywords, runs of any length, a ratio for each step."""

import inspect
import warnings
from types import SimpleNamespace

import pytest
import torch
from conftest import draw, tiny_unet, unet_inputs

import dato
from dato import DatoError, Pruning, sito
from dato.samplers import set_scheduler
from dato.unet.patch import patch_of
from dato.unet.run_schedule import WholeCalls

# The signature of `apply_patch` in the authors' code (EvelynZhang-epiclab/SiTo, patch.py).
AUTHORS = {
    "model": inspect.Parameter.empty,
    "prune_ratio": 0.5,
    "max_downsample_ratio": 1,
    "prune_selfattn_flag": True,
    "prune_crossattn_flag": False,
    "prune_mlp_flag": False,
    "sx": 2,
    "sy": 2,
    "noise_alpha": 0.1,
    "sim_beta": 1,
}
# What these defaults mean: SimScore and noise, own tokens in each block, the most similar kept token.
MEANT = Pruning(score="sito", recover_from="kept", shared=False, max_downsample=1, noise_alpha=0.1, sim_beta=1.0)


def ratios_of_calls(patched):
    """A list to which each call of the UNet adds its ratio."""
    pruner, seen = patch_of(patched).pruner, []
    prepare = pruner.prepare
    pruner.prepare = lambda ratio, *rest: seen.append(ratio) or prepare(ratio, *rest)
    return seen


def test_keywords_and_defaults_are_the_authors(make_pipe):
    assert {name: p.default for name, p in inspect.signature(sito.apply_patch).parameters.items()} == AUTHORS
    pipe = make_pipe()
    assert sito.apply_patch(pipe) is pipe
    schedule = dato.current_schedule(pipe)
    assert schedule.pruning == MEANT and schedule.ratios == (0.5,) and schedule.depths == (schedule.rungs,)


def test_every_keyword_does_what_it_says(make_pipe):
    pipe = make_pipe()
    sito.apply_patch(
        pipe,
        prune_ratio=0.25,
        max_downsample_ratio=2,
        prune_selfattn_flag=False,
        prune_crossattn_flag=True,
        prune_mlp_flag=True,
        sx=4,
        sy=1,
        noise_alpha=0.3,
        sim_beta=2,
    )
    expected = Pruning(
        recover_from="kept",
        shared=False,
        max_downsample=2,
        self_attention=False,
        cross_attention=True,
        feed_forward=True,
        sx=4,
        sy=1,
        noise_alpha=0.3,
        sim_beta=2,
    )
    schedule = dato.current_schedule(pipe)
    assert schedule.pruning == expected and schedule.ratios == (0.25,)


def test_every_block_of_every_call_prunes_in_runs_of_any_length(make_pipe):
    pipe = sito.apply_patch(make_pipe())
    chosen = []
    patch_of(pipe).pruner.listener = lambda *choice: chosen.append(choice[-1].pruned.shape[1] / 64)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for steps, sampler in ((4, "plms"), (7, "plms"), (4, "plms"), (3, "heun"), (1, "ddim")):
            set_scheduler(pipe, sampler)
            calls = dato.num_calls(pipe, steps)
            draw(pipe, steps)
            # SD has 5 blocks at the highest resolution.
            assert chosen == [0.5] * (5 * calls)
            assert len(dato.current_schedule(pipe)) == calls
            chosen.clear()


def test_it_prunes_as_dato_does_with_these_settings_and_is_removed(make_pipe):
    pipe, other = make_pipe(), make_pipe()
    stock = draw(pipe)
    pruned = draw(sito.apply_patch(pipe, 0.5))
    with dato.patched(other, prune_ratio=0.5, recover_from="kept", shared=False, max_downsample_ratio=1):
        assert torch.equal(draw(other), pruned) and not torch.equal(pruned, stock)
    sito.apply_patch(pipe, prune_ratio=0.7)
    assert not torch.equal(draw(pipe), pruned)
    assert sito.remove_patch(pipe) is pipe
    assert torch.equal(draw(pipe), stock) and patch_of(pipe) is None
    assert torch.equal(draw(sito.apply_patch(pipe.unet) and pipe), pruned)  # a UNet will do
    sito.remove_patch(pipe.unet)
    sito.remove_patch(pipe)  # twice is no harm
    assert torch.equal(draw(pipe), stock)


@pytest.mark.parametrize(
    ("sampler", "steps", "ratios", "by_call"),
    [
        # PLMS: 5 steps are 6 calls, of which the second and the third are at the same timestep.
        ("plms", 5, [0.1, 0.2, 0.3, 0.4, 0.5], [0.1, 0.2, 0.2, 0.3, 0.4, 0.5]),
        ("plms", 5, [0.1, 0.2, 0.25, 0.3, 0.4, 0.5], [0.1, 0.2, 0.25, 0.3, 0.4, 0.5]),  # one for each call
        ("heun", 3, [0.1, 0.2, 0.3], [0.1, 0.2, 0.2, 0.3, 0.3]),
        ("ddim", 3, [0.3, 0, 0.1], [0.3, 0, 0.1]),
        ("ddim", 3, [0.3], [0.3, 0.3, 0.3]),
        ("ddim", 3, (0.3,) * 7, [0.3, 0.3, 0.3]),
    ],
)
def test_a_list_has_a_ratio_for_each_step(make_pipe, sampler, steps, ratios, by_call):
    pipe = make_pipe()
    set_scheduler(pipe, sampler)
    for patch in (sito.apply_patch, lambda pipe, prune_ratio: dato.apply_patch(pipe, prune_ratio=prune_ratio)):
        seen = ratios_of_calls(patch(pipe, prune_ratio=ratios))
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            draw(pipe, steps)
            draw(pipe, steps)
        assert seen == 2 * by_call
        assert dato.current_schedule(pipe).ratios == tuple(by_call)


def test_fifty_ratios_serve_the_51_calls_of_50_plms_steps(make_pipe):
    pipe = make_pipe()
    set_scheduler(pipe, "plms")
    pipe.scheduler.set_timesteps(50)
    times = pipe.scheduler.timesteps.tolist()
    ratios = [i / 100 for i in range(50)]
    schedule = WholeCalls(ratios, Pruning(), 12).of_run(pipe, times, 0, (8, 8))
    assert len(times) == 51 and schedule.depths == (12,) * 51
    assert schedule.ratios == (0.0, 0.01, *ratios[1:])


def test_a_list_of_another_length_is_resampled(make_pipe):
    pipe = make_pipe()
    set_scheduler(pipe, "ddim")
    seen = ratios_of_calls(sito.apply_patch(pipe, [0.6, 0.6, 0.2, 0.2, 0.2, 0.2]))
    with pytest.warns(UserWarning, match="`prune_ratio` has 6 entries and this run has 3 calls, so they are resampled"):
        draw(pipe, 3)
    assert seen == [0.6, 0.2, 0.2]


def test_the_calls_of_a_bare_unet_are_one_run_until_the_timestep_rises():
    unet, (x, text) = tiny_unet(), unet_inputs()
    sito.apply_patch(unet, prune_ratio=0.5, noise_alpha=1000.0)  # so much noise that it chooses
    chosen = []
    patch_of(unet).pruner.listener = lambda *choice: chosen.append(choice[-1].pruned)

    def run(times):
        chosen.clear()
        with torch.no_grad():
            for time in times:
                unet(x, time, text)
        return chosen[::5]  # of the first block of each call

    first, again = run([900, 600, 300]), run([900, 600, 300, 1])
    assert len(first) == 3 and len(again) == 4
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=False))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[1], first[2])
    # The entries of a list are those of the timesteps. After the last one a run is over.
    seen = ratios_of_calls(sito.apply_patch(unet, prune_ratio=[0.1, 0.2, 0.3]))
    run([900, 600, 600, 300, 200])
    assert seen == [0.1, 0.2, 0.2, 0.3, 0.1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prune_ratio": 1.5}, "ratio 1.5 of call 0 is not a number from 0 to below 1"),
        ({"prune_ratio": [0.5, -1]}, "ratio -1 of call 1 is not"),
        ({"prune_ratio": []}, "`prune_ratio` is an empty list"),
        ({"prune_ratio": "0.5"}, "`prune_ratio` must be a number, or a list with one for each step, not '0.5'"),
        ({"prune_ratio": None}, "apply_patch needs a schedule"),
        ({"sx": 1, "sy": 1}, "1 x 1"),
        ({"max_downsample_ratio": 0}, "max_downsample must be a whole number of at least 1"),
    ],
)
def test_bad_values_are_refused(make_pipe, options, message):
    pipe = make_pipe()
    with pytest.raises(DatoError, match=message) as caught:
        sito.apply_patch(pipe, **options)
    assert "\n" not in str(caught.value) and patch_of(pipe) is None


def test_a_unet_without_attention_at_the_highest_resolution_needs_a_higher_ratio():
    unet = tiny_unet("sdxl")
    with pytest.raises(DatoError, match=r"`max_downsample_ratio`=1 prunes nothing here: .* of 2; give 2"):
        sito.apply_patch(unet)
    assert dato.current_schedule(sito.apply_patch(unet, max_downsample_ratio=2)).pruning.max_downsample == 2


def test_other_models_of_compvis_are_refused_by_name():
    class EncoderUNetModel(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.input_blocks = torch.nn.ModuleList()

    class LatentDiffusion(SimpleNamespace):
        pass

    wrapper = SimpleNamespace(diffusion_model=EncoderUNetModel())
    whole, unet = "a LatentDiffusion with a EncoderUNetModel", "EncoderUNetModel"
    for model, name in ((LatentDiffusion(model=wrapper), whole), (EncoderUNetModel(), unet)):
        for function in (sito.apply_patch, sito.remove_patch, dato.apply_patch):
            with pytest.raises(DatoError, match=f"cannot patch {name}: of CompVis' code, supported are"):
                function(model)


def test_without_a_schedule_apply_patch_says_what_it_needs(make_pipe):
    with pytest.raises(DatoError, match=r"needs a schedule or a front .* `speedup=2.5` .* `prune_ratio=0.5`") as caught:
        dato.apply_patch(make_pipe())
    assert "\n" not in str(caught.value)
