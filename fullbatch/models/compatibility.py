"""Whether a module takes the images it is to be trained on, found out before the first step."""

import torch
from torch import Tensor, nn

from fullbatch.randomness import preserved_rng
from fullbatch.tensors import device_of, mode, preserved


@torch.no_grad()
def check_compatible(model: nn.Module, inputs: Tensor, classes: int) -> None:
    """Evaluate ``model`` on one image [1, C, H, W], in evaluation mode and without a trace.

    Raises:
        ValueError: the module fails on it, or returns something else than outputs [1, classes].
    """
    shape = "x".join(map(str, inputs.shape[1:]))
    try:
        with mode(model, training=False), preserved_rng(device_of(model)), preserved(list(model.buffers())):
            outputs = model(inputs)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"does not take images of {shape} ({str(error).splitlines()[0]})") from error
    found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    if found != [1, classes]:
        raise ValueError(f"returns {found} for one image of {shape}; expected are outputs [1, {classes}]")
