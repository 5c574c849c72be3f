"""bfloat16 autocast on processors that have no bfloat16: float32 arithmetic on numbers that are rounded to it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.conv2d, F.linear)
"""Whose parameters autocast rounds, too."""


class Rounding(TorchFunctionMode):
    """Rounds results of functions, and what products are of, to bfloat16; on the way back it rounds gradients.

    Sums inside a product, statistics of batch norm and all parameters but those of products are float32, as they are
    under autocast where processors have products of bfloat16.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in PRODUCTS:
            args = [rounded(value) for value in args]
        return rounded(func(*args, **(kwargs or {})))


def rounded(value: Any) -> Any:
    """Return a tensor of float32 rounded to bfloat16, and anything else as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


class Rounded(nn.Module):
    """``model`` with the outputs and gradients it would have under bfloat16 autocast, in float32."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> Tensor:
        with Rounding():
            outputs: Tensor = self.model(inputs)
        return outputs
