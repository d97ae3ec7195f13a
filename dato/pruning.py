"""How tokens are pruned: the settings that a schedule's ratios are to be read with."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from dato.errors import DatoError

SCORES = ("sito", "dato", "I", "II", "III", "IV", "V", "VI")
SIMILARITIES = ("global", "local")


@dataclass(frozen=True)
class Pruning:
    """Settings of token pruning, everything but the ratio (design: SiTo, AAAI 2025; DaTo, 2025).

    Attributes:
        score: How base tokens are chosen: "sito" (SimScore plus noise), "dato" (temporal difference of the
            prediction, sign at random, plus noise), or a row of SiTo's table 3: "I" top-left of each patch, "II" a
            random quarter of the image, "III" the quarter with the highest SimScore, "IV" random in each patch,
            "V" SimScore without noise, "VI" the same as "sito".
        sx: Width of a patch in tokens; each patch gives one base token.
        sy: Height of a patch in tokens.
        noise_alpha: Weight of the Gaussian noise.
        sim_beta: Weight of the SimScore.
        diff_gamma: Weight of DaTo's temporal difference.
        max_downsample: Prune in blocks at a downsampling of at most this; None: the smallest at which the model
            has attention (1 in SD 1.x and 2.x, 2 in SDXL).
        self_attention: Prune around self-attention (SiTo's `prune_selfattn_flag`).
        cross_attention: Prune around cross-attention (`prune_crossattn_flag`).
        feed_forward: Prune around the feed-forward (`prune_mlp_flag`).
        recover_from: A pruned token gets the output of its most similar "base" token (the paper) or of its most
            similar "kept" token (the authors' code); "past" continues the token's own last two outputs where these
            are fresh, is "base" elsewhere, and lets tokens take turns: those not computed for longest are kept, and
            score and similarity decide among equals (ours, see `dato.tokens.recovery`). It holds two outputs of each
            such layer.
        similarity: Base tokens that a token is compared with: all of them ("global", the papers) or those of its own
            and the adjacent patches ("local", linear in the number of tokens).
        reduction: "prune" drops tokens, "merge" averages them into their most similar base token (ToMeSD).
        align_cfg: Both halves of a classifier-free-guidance batch use the first half's base tokens. Only for runs
            with guidance: without it the halves are different images.
        shared: The tokens that the first block of a call chooses are those of all its blocks on the same grid; off,
            every block chooses anew (the papers).
        choose_every: Tokens are chosen at every n-th call that prunes; the calls between, where they prune as many,
            use the last choice again. Needs `shared`.
        seed: Seed of the pruning's own random generator, set anew for every generation.

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

    def __post_init__(self) -> None:
        _one_of("score", self.score, SCORES)
        _one_of("recover_from", self.recover_from, ("base", "kept", "past"))
        _one_of("similarity", self.similarity, SIMILARITIES)
        _one_of("reduction", self.reduction, ("prune", "merge"))
        for name in ("sx", "sy", "max_downsample", "choose_every"):
            value = getattr(self, name)
            if value is None and name == "max_downsample":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise DatoError(f"pruning: {name} must be a whole number of at least 1, not {value!r}")
        if self.sx * self.sy < 2:
            raise DatoError("pruning: a patch of 1 x 1 makes every token a base token; sx * sy must be at least 2")
        for name in ("noise_alpha", "sim_beta", "diff_gamma"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
                raise DatoError(f"pruning: {name} must be a number, not {value!r}")
        for name in ("self_attention", "cross_attention", "feed_forward", "align_cfg", "shared"):
            if not isinstance(getattr(self, name), bool):
                raise DatoError(f"pruning: {name} must be true or false, not {getattr(self, name)!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise DatoError(f"pruning: seed must be a whole number, not {self.seed!r}")
        if self.reduction == "merge" and self.recover_from != "base":
            raise DatoError('pruning: reduction="merge" averages into base tokens, so it needs recover_from="base"')
        if self.similarity == "local" and self.score in ("II", "III"):
            raise DatoError(f'pruning: similarity="local" goes by patches; score {self.score} does not')
        if self.choose_every > 1 and not self.shared:
            raise DatoError("pruning: choose_every above 1 needs shared=True")

    @property
    def patch(self) -> tuple[int, int]:
        """(sy, sx): rows and columns of a patch."""
        return self.sy, self.sx

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Pruning:
        """The inverse of `to_dict`; settings left out keep their defaults. Raises DatoError on unknown ones."""
        if not isinstance(data, dict):
            raise DatoError(f"pruning must be an object of settings, not {type(data).__name__}")
        unknown = sorted(set(data) - {f.name for f in dataclasses.fields(cls)})
        if unknown:
            raise DatoError(f"pruning: unknown setting {unknown[0]!r}")
        return cls(**data)


# SiTo's keyword -> ours, where both mean the same.
SITO_KEYWORDS = {
    "max_downsample_ratio": "max_downsample",
    "prune_selfattn_flag": "self_attention",
    "prune_crossattn_flag": "cross_attention",
    "prune_mlp_flag": "feed_forward",
}


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise DatoError(f"pruning: {name} must be one of {', '.join(allowed)}, not {value!r}")


# SiTo's own settings (AAAI 2025): in every block its own choice of tokens.
PAPER_PRUNING = Pruning(shared=False)
# The ratios of SiTo's table 1, a to e, and of DaTo's search.
PAPER_RATIOS = {"a": 0.3, "b": 0.4, "c": 0.5, "d": 0.6, "e": 0.7}
