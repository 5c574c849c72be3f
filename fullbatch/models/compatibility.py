"""Checking that a model fits the data, before the first step."""

import torch
from torch import Tensor, nn

from fullbatch.randomness import preserved_rng
from fullbatch.tensors import device_of, mode, preserved


@torch.no_grad()
def check_compatible(model: nn.Module, images: Tensor, classes: int) -> None:
    """Evaluate ``model`` on one image [1, C, H, W] in evaluation mode; buffers and random states stay as they are.

    Raises:
        ValueError: The model fails, or its result is not a tensor [1, classes].
    """
    device = torch.device("cpu") if images.is_meta else device_of(model)
    try:
        with mode(model, training=False), preserved_rng(device), preserved(list(model.buffers())):
            outputs = model(images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # models of other authors may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"fails on images {list(images.shape)} ({reason})") from error
    if not isinstance(outputs, Tensor) or outputs.shape != (1, classes):
        result = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"maps images {list(images.shape)} to {result} instead of [1, {classes}]")
