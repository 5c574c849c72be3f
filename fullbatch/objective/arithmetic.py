"""The arithmetic of an evaluation: dtypes, autocast, and the scale of the loss."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are represented and accumulated.

    Args:
        dtype: of parameters and inputs.
        autocast: evaluate under ``torch.autocast``; True for the device's default low precision, or a dtype.
        loss_scale: a power of two. Backward passes start from ``loss_scale`` times the loss, and their results are
            divided by it. This keeps small float16 gradients (below 6e-8) from becoming 0 and changes nothing else.
        accumulation_dtype: of sums over sub-batches, or the parameters' own dtype where that is more precise.
    """

    dtype: torch.dtype = torch.float32
    autocast: bool | torch.dtype = False
    loss_scale: float = 1.0
    accumulation_dtype: torch.dtype = torch.float32

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype in which matrices are multiplied (bfloat16 for ``autocast=True``, the default on CPUs)."""
        if self.autocast is False:
            return self.dtype
        return torch.bfloat16 if self.autocast is True else self.autocast

    def autocast_on(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context for ``device``, which does nothing where ``autocast`` is False."""
        if self.autocast is False:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=None if self.autocast is True else self.autocast)
