"""Compare the rule of `dato.apply_patch(pipe, speedup=...)` with DeepCache and Spectrum, image by image.

Every schedule is compared with the same sampler's stock images of the same number of steps, from the same noise. The
rule gets the speed-up that the other method has in FLOPs of the UNet, so it never takes more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from dato.experiments.progress import Update
from dato.generation.sampling import Sampling, generate
from dato.metrics.base import Setup
from dato.metrics.fidelity import Psnr
from dato.prediction.flops import flop_share
from dato.samplers import num_calls, set_scheduler
from dato.schedule import Schedule
from dato.unet.ladder import Ladder
from dato.unet.patch import patched
from dato.unet.speedup_rule import rule

INTERVALS = (2, 3, 5)  # DeepCache's N
GROWTHS = (0.75, 3.0)  # Spectrum's two settings


@dataclass(frozen=True)
class Compared:
    """The rule beside another method at the same speed-up.

    Attributes:
        sampler: A name of `SAMPLERS`.
        steps: Sampler steps.
        guidance_scale: The scale of classifier-free guidance.
        method: The other method's name.
        speedup: Stock's FLOPs of the UNet by the other method's.
        rule_speedup: Stock's FLOPs by the rule's; at least `speedup`.
        psnr: (n,) the other method's PSNR in dB to stock's images.
        rule_psnr: (n,) the rule's.
    """

    sampler: str
    steps: int
    guidance_scale: float
    method: str
    speedup: float
    rule_speedup: float
    psnr: Tensor
    rule_psnr: Tensor

    @property
    def gain(self) -> Tensor:
        """(n,) by how many dB the rule is nearer to stock."""
        return self.rule_psnr - self.psnr


def rivals(calls: int, rungs: int) -> dict[str, Schedule]:
    """Return the schedules that the rule is compared with, by name."""
    deepcache = {f"DeepCache N={n}": Schedule.uniform(calls, n, 1, rungs=rungs) for n in INTERVALS if n < calls}
    spectrum = {
        f"Spectrum {growth:g}": Schedule.growing(calls, growth=growth, rungs=rungs, forecast="chebyshev")
        for growth in GROWTHS
    }
    return deepcache | {name: schedule for name, schedule in spectrum.items() if 0 in schedule.depths}


def compare_rule(
    pipe: DiffusionPipeline,
    prompts: Sequence[str],
    settings: Sequence[tuple[str, int, float]],
    sampling: Sampling,
    update: Update = lambda done, total: None,
) -> Iterator[Compared]:
    """Compare the rule with `rivals` at each setting.

    Args:
        pipe: The pipeline. Its sampler is set anew for each setting.
        prompts: n, one for each image.
        settings: (sampler, steps, guidance scale).
        sampling: Size, seed and batch size; its steps and guidance are not used.
        update: Called with the number of settings that are done, and their number.
    """
    for number, (sampler, steps, guidance_scale) in enumerate(settings):
        update(number, len(settings))
        set_scheduler(pipe, sampler)
        calls, rungs = num_calls(pipe, steps), len(Ladder(pipe.unet))
        judge = _Judge(pipe, sampler, prompts, replace(sampling, steps=steps, guidance_scale=guidance_scale))
        for name, schedule in rivals(calls, rungs).items():
            speedup = judge.speedup(schedule)
            chosen = rule(pipe, calls, speedup, guidance_scale=guidance_scale)
            yield Compared(
                sampler,
                steps,
                guidance_scale,
                name,
                speedup,
                judge.speedup(chosen),
                judge.psnr(schedule),
                judge.psnr(chosen),
            )
    update(len(settings), len(settings))


class _Judge:
    """Compares schedules with stock's images of one setting."""

    def __init__(self, pipe: DiffusionPipeline, sampler: str, prompts: Sequence[str], sampling: Sampling) -> None:
        self._pipe, self._sampler, self._prompts, self._sampling = pipe, sampler, list(prompts), sampling
        self._metric = Psnr(Setup(device=torch.device("cpu")))
        self._stock = self._images()
        self._judged: dict[Schedule, Tensor] = {}

    def psnr(self, schedule: Schedule) -> Tensor:
        """Return the PSNR of each image, (n,)."""
        if schedule not in self._judged:
            with patched(self._pipe, schedule):
                images = self._images()
            self._judged[schedule] = self._metric.measure(images, self._prompts, self._stock)
        return self._judged[schedule]

    def speedup(self, schedule: Schedule) -> float:
        """Return stock's FLOPs by the schedule's."""
        unet, size = self._pipe.unet, self._latents
        return 1 / flop_share(unet, schedule, sample_shape=(1, unet.config.in_channels, *size))

    @property
    def _latents(self) -> tuple[int, int]:
        height, width = self._stock.shape[-2:]
        return height // self._pipe.vae_scale_factor, width // self._pipe.vae_scale_factor

    def _images(self) -> Tensor:
        set_scheduler(self._pipe, self._sampler)  # anew, because some samplers have random numbers of their own
        return generate(self._pipe, self._prompts, self._sampling).images


def markdown(results: Sequence[Compared]) -> str:
    """Return a table, one row for each comparison."""
    lines = [
        "| sampler | steps | guidance | method | its speed-up | its PSNR | the rule's | gain ± spread | images lost |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        spread = row.gain.std().item() if len(row.gain) > 1 else 0.0
        lost = int((row.gain < 0).sum())
        lines.append(
            f"| {row.sampler} | {row.steps} | {row.guidance_scale:g} | {row.method} | {row.speedup:.2f}x "
            f"| {row.psnr.mean():.1f} | {row.rule_psnr.mean():.1f} | {row.gain.mean():+.1f} ± {spread:.1f} "
            f"| {lost} of {len(row.gain)} |"
        )
    return "\n".join(lines)
