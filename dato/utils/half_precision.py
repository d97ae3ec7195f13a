"""Keep values within the range of half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def finite(value: Tensor) -> Tensor:
    """The value, held (in place) within its dtype's range: of those in use, only float16 ends where one may go."""
    return value.clamp_(-65504.0, 65504.0) if value.dtype == torch.float16 else value
