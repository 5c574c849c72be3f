"""The memory format of weights, with a workaround for convolutions that oneDNN computes incorrectly."""

from typing import Any, TypeGuard

import torch
from torch import nn

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

_VECTOR_LENGTH = 16  # the most float32 channels that oneDNN processes at once on a CPU


def order_weights(model: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    """Convert the weights to ``memory_format`` and return the model.

    On a CPU, strided 1 x 1 convolutions with fewer channels than a vector holds keep NCHW (no common network has one):
    in channels_last, oneDNN writes past their workspace, which corrupts the gradient or ends the process
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """
    model.to(memory_format=memory_format)
    if memory_format is torch.channels_last:
        for module in model.modules():
            if _is_unsafe(module):
                module.weight.data = module.weight.data.clone(memory_format=torch.contiguous_format)  # strides, too
                module.register_forward_pre_hook(_convert_inputs)
    return model


def is_safe_in_channels_last(model: nn.Module) -> bool:
    """Return whether no convolution of the model has to keep NCHW (see `order_weights`)."""
    return not any(map(_is_unsafe, model.modules()))


def _is_unsafe(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(module, nn.Conv2d):
        return False
    is_strided = module.kernel_size == (1, 1) and max(module.stride) > 1
    has_few_channels = module.in_channels // module.groups < _VECTOR_LENGTH
    return is_strided and has_few_channels and module.weight.device.type == "cpu"


def _convert_inputs(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].contiguous(), *arguments[1:])
