"""Token pruning: which tokens a layer leaves out, and how they are filled in again (SiTo, DaTo)."""

from dato.tokens.selection import TokenSelection, select_tokens, similarity_score

__all__ = ["TokenSelection", "select_tokens", "similarity_score"]
