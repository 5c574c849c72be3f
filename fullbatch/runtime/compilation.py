"""Compiled models, where the machine can compile."""

import logging
from collections.abc import Callable

import torch
from torch import nn

log = logging.getLogger(__name__)


def compile_model(model: nn.Module, trial: Callable[[], object]) -> bool:
    """Compile ``model`` in place, names of its entries unchanged, and return whether ``trial`` then works.

    ``trial`` evaluates the model as training will. Where it fails for the compiler's sake (there is none, it does not
    know the machine, or not what the model does), the reason is logged and everything runs uncompiled.
    """
    torch.compiler.set_stance("default")
    model.compile(dynamic=False)  # a graph a shape: there are few, and those of fixed shapes are faster
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers raise whatever their tools do
        torch.compiler.set_stance("force_eager")
        reason = next(filter(None, str(error).strip().splitlines()), type(error).__name__)
        log.warning("impl.compile: not possible here, going on uncompiled (%s)", reason)
        return False
    return True
