"""Emulated autocast for processors without low-precision products: float32 arithmetic on rounded numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.conv2d, F.linear)
"""Functions whose parameters autocast rounds, too."""


class Rounding(TorchFunctionMode):
    """Rounds results of functions and arguments of products to ``dtype``; in the backward pass it rounds gradients.

    Sums inside a product, statistics of batch norm and all parameters except those of products are float32, as under
    autocast on processors with products of that precision. Values outside the range of float16 become 0 or infinite.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in PRODUCTS:
            args = [rounded(value, self.dtype) for value in args]
        return rounded(func(*args, **(kwargs or {})), self.dtype)


def rounded(value: Any, dtype: torch.dtype) -> Any:
    """Return a float32 tensor rounded to ``dtype``, and any other value unchanged."""
    return value.to(dtype).float() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class Rounded(nn.Module):
    """Wraps ``model`` to give, in float32, the outputs and gradients of autocast to ``dtype``."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, inputs: Tensor) -> Tensor:
        with Rounding(self.dtype):
            outputs: Tensor = self.model(inputs)
        return outputs
