"""The order of a model's weights in memory, around a convolution that oneDNN computes wrongly."""

from typing import Any, TypeGuard

import torch
from torch import nn

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

_CHANNELS_OF_A_VECTOR = 16  # the most that oneDNN computes at once on a CPU, in float32


def order_weights(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Put the weights into the memory format, and return the model.

    On a CPU, strided 1 x 1 convolutions of fewer channels than a vector holds (no common network has one) stay in NCHW:
    in channels_last oneDNN writes past their workspace, which spoils the gradient or ends the process
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    model.to(memory_format=memory_format)
    if memory_format is torch.channels_last:
        for module in model.modules():
            if _is_computed_wrongly(module):
                module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)  # strides, too
                module.register_forward_pre_hook(_in_nchw)
    return model


def is_safe_in_channels_last(model: nn.Module) -> bool:
    """Whether none of its convolutions has to stay in NCHW (see `order_weights`)."""
    return not any(map(_is_computed_wrongly, model.modules()))


def _is_computed_wrongly(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d):
        return False
    strided = module.kernel_size == (1, 1) and max(module.stride) > 1
    few = module.in_channels // module.groups < _CHANNELS_OF_A_VECTOR
    return strided and few and module.weight.device.type == "cpu"


def _in_nchw(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].contiguous(), *arguments[1:])
