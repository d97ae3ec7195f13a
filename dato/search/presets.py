"""The settings of a search as named presets: what to choose from (`depths`, `ratios`, `steps`, `orders`), and how."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dato.pruning import PAPER_RATIOS, Pruning


@dataclass(frozen=True)
class Preset:
    """Settings of one search.

    Attributes:
        steps: Steps of the sampler: the lengths to choose from.
        orders: Orders of forecasts to choose from.
        forecast: What orders above 0 mean (see `Schedule`).
        scheduler: The sampler, for the embedded model; None: the model's own.
        guidance_scale: Classifier-free guidance, for the embedded model.
        for_all_models: Whether other models than the embedded one get this sampler and guidance, too.
        quality: The objective beside latency; None: that of the front that the search builds on.
        min_quality: The least quality that counts, as the metric is written; None: any.
        images: Prompts, one image each.
        race: Number of images after which a surely dominated candidate gets no more; None or 0: all candidates get all.
        pop_size: Individuals of a generation; the first one takes in all seeds.
        generations: Generations, the initial population included.
        crossover: Probability and eta of simulated binary crossover, rounded; None: `SpliceCrossover`.
        mutation: Probability and eta of polynomial mutation, rounded; None: `EditMutation`.
        depths: Depths to choose from, besides the whole UNet.
        ratios: Prune ratios to choose from; those of a search of depths alone are none.
        from_uniform: Begin from uniform schedules and variations; else as DaTo does (`papers_initial` of a space).
        advised: Measure the sensitivity model, begin from its plans, and let it rank offspring.
        minutes: What a guided search takes (`dato.search.guided`); None: a search by generations.
        speedups: The lowest and the highest speed-up that a guided search looks at.
        validation: Prompts that finalists are validated by; no candidate is judged by them before.
        finalists: Points of the front that are validated, if they are spaced evenly; more if most of them are fast.
            Rules are validated after them, for 0.3 of what they may cost.
        model_images: Images that the sensitivity model is measured with.
        order_by_call: Each call has its own order of forecast; else a schedule has one.
        rounds: How often the front and stock are timed again in the end, in turn.
        batch_size: Images of the embedded model that are generated together.
    """

    steps: tuple[int, ...]
    orders: tuple[int, ...]
    forecast: str
    scheduler: str | None
    guidance_scale: float
    images: int
    race: int | None
    pop_size: int
    generations: int
    crossover: tuple[float, float] | None
    mutation: tuple[float, float] | None
    depths: tuple[int, ...]
    ratios: tuple[float, ...]
    from_uniform: bool
    advised: bool
    for_all_models: bool = False
    quality: str | None = "psnr"
    min_quality: float | None = None
    minutes: float | None = None
    speedups: tuple[float, float] = (2.0, 16.0)
    validation: int = 0
    finalists: int = 12
    model_images: int = 1
    order_by_call: bool = False
    rounds: int = 2
    batch_size: int = 2


# Guided searches. In five minutes there is time for few judgements. Predictions of calls at depth 0 are good enough for
# that, and those of shallow calls are not.
FAST = Preset(
    steps=(50,),
    orders=(0, 1),
    forecast="polynomial",
    scheduler="dpm++2m",
    guidance_scale=3.0,
    images=6,
    race=2,
    pop_size=100,
    generations=1,
    crossover=None,
    mutation=None,
    depths=(0,),
    ratios=(),
    from_uniform=True,
    advised=True,
    minutes=5.0,
    validation=12,
    model_images=4,
    order_by_call=True,
    rounds=0,
    batch_size=6,
)

# "paper" is DaTo's search: the settings of the authors' scripts, search_depth.py and search_ratio.py. Both have the
# constraint that ImageReward is not negative.
DEPTH_PRESETS = {
    "fast": FAST,
    "thorough": replace(
        FAST,
        steps=(10, 15, 20, 25, 30, 40, 50),
        orders=(0, 1, 2),
        images=24,
        race=6,
        depths=(0, 1, 2, 3),
        minutes=40.0,
        validation=30,
        finalists=36,
        model_images=8,
    ),
    "quick": Preset(
        steps=(8, 10, 12, 15, 18, 20, 22, 25, 30, 40, 50),
        orders=(0, 1),
        forecast="aligned",
        scheduler="dpm++2m",
        guidance_scale=3.0,
        images=8,
        race=2,
        pop_size=24,
        generations=3,
        crossover=None,
        mutation=None,
        depths=(0, 1, 2, 3),
        ratios=(),
        from_uniform=True,
        advised=True,
    ),
    "paper": Preset(
        steps=(50,),
        orders=(0,),
        forecast="polynomial",
        scheduler="plms",
        guidance_scale=7.5,
        for_all_models=True,
        quality="image-reward",
        min_quality=0.0,
        images=32,
        race=None,
        pop_size=15,
        generations=30,
        crossover=(0.8, 15),
        mutation=(0.8, 15),
        depths=(0, 1),
        ratios=(),
        from_uniform=False,
        advised=False,
    ),
}


# A search of ratios takes depths, steps, orders, sampler and guidance from the front.
# A joint search takes `ratios` from here.
RATIO_PRESETS = {
    "quick": replace(
        DEPTH_PRESETS["quick"],
        quality=None,
        images=4,
        pop_size=16,
        generations=5,
        ratios=(0, 0.3, 0.5, 0.7),
        advised=False,
    ),
    "paper": replace(
        DEPTH_PRESETS["paper"],
        images=16,
        pop_size=25,
        generations=100,
        crossover=(0.7, 7),
        mutation=(0.4, 15),
        ratios=tuple(PAPER_RATIOS.values()),
    ),
}
# Settings of token pruning with the preset paper. The authors' script spells `diff_gamma` diff_gema.
# A pruned token gets the output of a base token, as in the paper. In the authors' code it is that of any kept token.
DATO_PRUNING = Pruning(score="dato", diff_gamma=0.1, noise_alpha=0.1, align_cfg=True, shared=False)
GUIDED = tuple(name for name, preset in DEPTH_PRESETS.items() if preset.minutes is not None)
