"""Compiled models, where the machine can compile."""

import logging
from collections.abc import Callable

import torch
from torch import nn

from fullbatch.runtime.memory_format import is_safe_in_channels_last

log = logging.getLogger(__name__)


def compile_in_place(model: nn.Module) -> nn.Module:
    """Have ``model`` compiled when it is evaluated, names of its entries unchanged, and return it.

    There is a graph for each shape of its inputs: there are few, and those of fixed shapes are faster. Where
    channels_last is not safe (see `is_safe_in_channels_last`), the compiler is kept from choosing it.
    """
    options = None if is_safe_in_channels_last(model) else {"layout_optimization": False}
    model.compile(dynamic=False, options=options)
    return model


def compile_model(model: nn.Module, trial: Callable[[], object]) -> bool:
    """Compile ``model`` in place, names of its entries unchanged, and return whether ``trial`` then works.

    ``trial`` evaluates the model as training will. Where it fails for the compiler's sake (there is none, it does not
    know the machine, or not what the model does), the reason is logged and everything runs uncompiled.
    """
    torch.compiler.set_stance("default")
    compile_in_place(model)
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
