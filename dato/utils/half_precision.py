"""Keep values within the range of half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def finite(value: Tensor) -> Tensor:
    """Clamp float16 values, in place, to the largest finite numbers of float16. Return other dtypes as they are."""
    return value.clamp_(-65504.0, 65504.0) if value.dtype == torch.float16 else value
