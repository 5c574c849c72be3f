"""Autocast on processors that have no products of low precision: float32 arithmetic on numbers that are rounded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.conv2d, F.linear)
"""Whose parameters autocast rounds, too."""


class Rounding(TorchFunctionMode):
    """Rounds results of functions, and what products are of, to ``dtype``; on the way back it rounds gradients.

    Sums inside a product, statistics of batch norm and all parameters but those of products are float32, as they are
    under autocast where processors have products of that precision. What float16 has no numbers for is 0 or infinite.
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
    """Return a tensor of float32 rounded to ``dtype``, and anything else as it is."""
    return value.to(dtype).float() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class Rounded(nn.Module):
    """``model`` with the outputs and gradients it would have under autocast to ``dtype``, in float32."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model, dtype

    def forward(self, inputs: Tensor) -> Tensor:
        with Rounding(self.dtype):
            outputs: Tensor = self.model(inputs)
        return outputs
