"""The settings of token pruning: everything but the ratio. A schedule holds them beside its ratios.

This module does not import torch. `dato.tokens` has the code that prunes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dato.errors import DatoError


@dataclass(frozen=True)
class BaseScore:
    """What a base score is called and what it needs. `dato.tokens.scores` computes it.

    Attributes:
        name: As in `Pruning.score`.
        summary: What the score is, in a few words.
        noise: Whether it takes Gaussian noise.
        difference: Whether it takes the difference of the last two predictions (DaTo's D).
        by_patch: Whether each patch gives one base token. If not, the base tokens are the quarter of all tokens with
            the highest scores, wherever they are. Local similarity then makes no sense and is refused.
        align_cfg: Whether a search with guidance sets `Pruning.align_cfg`. It does so for scores that are mostly noise.
    """

    name: str
    summary: str
    noise: bool = True
    difference: bool = False
    by_patch: bool = True
    align_cfg: bool = True


# Adding a base score takes one line here and one function in `dato.tokens.scores`.
BASE_SCORES = {
    score.name: score
    for score in (
        BaseScore("sito", "SimScore plus noise", align_cfg=False),
        BaseScore("dato", "temporal difference of the prediction, sign at random, plus noise", difference=True),
        BaseScore("I", "top-left of each patch", noise=False),
        BaseScore("II", "a random quarter of the image", by_patch=False),
        BaseScore("III", "the quarter of the image with the highest SimScore", noise=False, by_patch=False),
        BaseScore("IV", "random in each patch"),
        BaseScore("V", "SimScore without noise", noise=False),
        BaseScore("VI", "the same as sito"),
    )
}
SCORES = tuple(BASE_SCORES)
SIMILARITIES = ("global", "local")
RECOVERIES = ("base", "kept", "past")
REDUCTIONS = ("prune", "merge")
NOISES = ("absolute", "relative")


@dataclass(frozen=True)
class Pruning:
    """Settings of token pruning, everything but the ratio (SiTo, AAAI 2025; DaTo, 2025).

    One default differs from the papers': `shared`. The blocks of a call share one choice of tokens, where in the papers
    every block chooses anew. This saves choices (SD 1.x makes one a call instead of five). The images are nearer to
    stock's at a ratio of 0.5 (33.6 dB, not shared 25.2), and farther from them at 0.7 (30.5 dB, not shared 33.4).
    Two more choices are ours, and not the default: `similarity="local"` chooses tokens four times as fast, at 0.3 dB
    more or less. `recover_from="past"` is nearest to stock (44.4 and 38.3 dB), and each layer that prunes keeps its
    last two outputs in memory. docs/benchmarks.md has these numbers, of the embedded model. `dato.sito` has the
    settings of SiTo's authors. DaTo's authors set `score="dato"`, `diff_gamma=0.1` and `align_cfg=True`.

    Attributes:
        score: How base tokens are chosen: "sito" (SimScore plus noise), "dato" (temporal difference of the
            prediction, sign at random, plus noise), or a row of SiTo's table 3: "I" top-left of each patch, "II" a
            random quarter of the image, "III" the quarter with the highest SimScore, "IV" random in each patch,
            "V" SimScore without noise, "VI" the same as "sito".
        sx: Width of a patch in tokens; each patch gives one base token.
        sy: Height of a patch in tokens.
        noise_alpha: Weight of the Gaussian noise.
        noise: What the weight is relative to. "absolute" (the papers): the noise is added as it is. Beside a SimScore,
            which is a sum over all tokens, 0.1 of it changes nothing. "relative" (ours): in each patch the noise is
            multiplied by the standard deviation of what is added to it, the SimScore or DaTo's difference with its
            weight. If these are all equal, the noise alone decides.
        sim_beta: Weight of the SimScore.
        diff_gamma: Weight of DaTo's temporal difference.
        max_downsample: Prune in blocks at a downsampling of at most this; None: the smallest at which the model
            has attention (1 in SD 1.x and 2.x, 2 in SDXL).
        self_attention: Prune around self-attention (SiTo's `prune_selfattn_flag`).
        cross_attention: Prune around cross-attention (`prune_crossattn_flag`).
        feed_forward: Prune around the feed-forward (`prune_mlp_flag`).
        recover_from: What a pruned token gets: the output of its most similar "base" token (the paper) or of its most
            similar "kept" token (the authors' code). With "past" (ours, see `dato.tokens.recovery`) it continues its
            own last two outputs. If these are too old, it gets what "base" gives. Tokens then take turns: those that
            have not been computed for the longest time are kept. Score and similarity decide among equals. Each layer
            that prunes keeps its last two outputs.
        similarity: Base tokens that a token is compared with: all of them ("global", the papers), or those of its own
            and the adjacent patches ("local", linear in the number of tokens).
        reduction: "prune" drops tokens, "merge" averages them into their most similar base token (ToMeSD).
        align_cfg: Both halves of a classifier-free-guidance batch use the first half's base tokens. Use it only with
            guidance: without guidance the halves are different images.
        shared: All blocks of a call on the same grid use the tokens that the first of them chooses. False: every
            block chooses anew (the papers).
        choose_every: Choose tokens at every n-th call that prunes. The calls between use the last choice again, if
            they prune as many. Needs `shared`.
        seed: Seed of the pruning's own random generator, set anew for every generation. Each image of a
            batch gets the same random numbers, which are those that it gets alone.

    Raises:
        DatoError: if a value is out of range.

    Example:
        >>> Pruning(sx=4, sy=2, recover_from="past").patch
        (2, 4)
        >>> Pruning(score="random")
        Traceback (most recent call last):
        dato.errors.DatoError: pruning: score must be one of sito, dato, I, II, III, IV, V, VI, not 'random'
    """

    score: str = "sito"
    sx: int = 2
    sy: int = 2
    noise_alpha: float = 0.1
    sim_beta: float = 1.0
    diff_gamma: float = 1.0
    max_downsample: int | None = None
    self_attention: bool = True
    cross_attention: bool = False
    feed_forward: bool = False
    recover_from: str = "base"
    similarity: str = "global"
    reduction: str = "prune"
    align_cfg: bool = False
    shared: bool = True
    choose_every: int = 1
    seed: int = 0
    noise: str = "absolute"

    def __post_init__(self) -> None:
        self._check_types()
        if self.sx * self.sy < 2:
            raise DatoError("pruning: a patch of 1 x 1 makes every token a base token; sx * sy must be at least 2")
        if self.reduction == "merge" and self.recover_from != "base":
            raise DatoError('pruning: reduction="merge" averages into base tokens, so it needs recover_from="base"')
        if self.similarity == "local" and not self.base_score.by_patch:
            raise DatoError(f'pruning: similarity="local" needs a score that chooses by patch; {self.score} does not')
        if self.choose_every > 1 and not self.shared:
            raise DatoError("pruning: choose_every above 1 needs shared=True")

    def _check_types(self) -> None:
        _one_of("score", self.score, tuple(BASE_SCORES))
        _one_of("recover_from", self.recover_from, RECOVERIES)
        _one_of("similarity", self.similarity, SIMILARITIES)
        _one_of("reduction", self.reduction, REDUCTIONS)
        _one_of("noise", self.noise, NOISES)
        for name in ("sx", "sy", "max_downsample", "choose_every"):
            value = getattr(self, name)
            if value is None and name == "max_downsample":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DatoError(f"pruning: {name} must be a whole number of at least 1, not {value!r}")
        for name in ("noise_alpha", "sim_beta", "diff_gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1e300 < value < 1e300:
                raise DatoError(f"pruning: {name} must be a number, not {value!r}")
        for name in ("self_attention", "cross_attention", "feed_forward", "align_cfg", "shared"):
            if not isinstance(getattr(self, name), bool):
                raise DatoError(f"pruning: {name} must be true or false, not {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise DatoError(f"pruning: seed must be a whole number, not {self.seed!r}")
        if not -(2**63) <= self.seed < 2**64:  # what torch takes
            raise DatoError(f"pruning: seed must be below {2**64}, not {self.seed}")

    @property
    def base_score(self) -> BaseScore:
        """The description of `score`."""
        return BASE_SCORES[self.score]

    @property
    def patch(self) -> tuple[int, int]:
        """(sy, sx): rows and columns of a patch."""
        return self.sy, self.sx

    @property
    def base_patch(self) -> tuple[int, int] | None:
        """The patch that each gives one base token. None: base tokens may lie anywhere (SiTo's table 3, II and III)."""
        return self.patch if self.base_score.by_patch else None

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain JSON values.

        `noise` is left out if it is "absolute": files from before it existed, and the names of files, which are hashes
        of that text, stay valid.
        """
        settings = dataclasses.asdict(self)
        if self.noise == NOISES[0]:
            del settings["noise"]
        return settings

    @classmethod
    def from_dict(cls, data: object) -> Pruning:
        """Return the settings in `data`; those left out keep their defaults. Raise DatoError if one is unknown."""
        if not isinstance(data, dict):
            raise DatoError(f"pruning must be an object of settings, not {type(data).__name__}")
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise DatoError(f"pruning: unknown setting {unknown[0]!r}")
        return cls(**data)


# SiTo's keyword -> the setting that means the same.
SITO_KEYWORDS = {
    "max_downsample_ratio": "max_downsample",
    "prune_selfattn_flag": "self_attention",
    "prune_crossattn_flag": "cross_attention",
    "prune_mlp_flag": "feed_forward",
}


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DatoError(f"pruning: {name} must be one of {', '.join(allowed)}, not {value!r}")


# SiTo's own settings (AAAI 2025): every block chooses its own tokens.
SITO_PRUNING = Pruning(shared=False)
# The ratios of SiTo's table 1, a to e, and of DaTo's search.
PAPER_RATIOS = {"a": 0.3, "b": 0.4, "c": 0.5, "d": 0.6, "e": 0.7}
