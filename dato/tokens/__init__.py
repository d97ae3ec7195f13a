"""Token pruning: which tokens a layer leaves out, and how they are filled in again (SiTo, DaTo).

`scores` ranks tokens, `selection` chooses those to prune, `recovery` continues a pruned token's own past, and `pruner`
attaches all of it to a UNet. The settings are in `dato.pruning`.
"""

from dato.tokens.selection import TokenSelection, select_tokens
from dato.tokens.similarity import similarity_score

__all__ = ["TokenSelection", "select_tokens", "similarity_score"]
