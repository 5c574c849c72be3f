"""``torch.compile`` for models, with a fallback to uncompiled evaluation."""

import logging
from collections.abc import Callable

import torch
from torch import nn

from fullbatch.runtime.memory_format import is_safe_in_channels_last

log = logging.getLogger(__name__)


def compile_in_place(model: nn.Module, mode: str | None = None) -> nn.Module:
    """Compile ``model`` at its next evaluation and return it; names of parameters and buffers stay the same.

    Each input shape gets a graph of its own: shapes are few, and graphs of fixed shape are faster. If channels_last is
    unsafe for this model (see `is_safe_in_channels_last`), the compiler may not choose it. ``mode`` is that of
    ``torch.compile``: ``reduce-overhead`` records CUDA graphs.
    """
    if not is_safe_in_channels_last(model):  # on a CPU, where ``mode`` makes no difference
        model.compile(dynamic=False, options={"layout_optimization": False})
    else:
        model.compile(dynamic=False, mode=mode)
    return model


def compile_model(model: nn.Module, trial: Callable[[], object], mode: str | None = None) -> bool:
    """Compile ``model`` in place, call ``trial`` and return whether it succeeded.

    ``trial`` evaluates the model as training will. If it raises an error (no compiler, an unsupported machine or an
    unsupported operation), the reason is logged and everything runs uncompiled. ``OutOfMemoryError`` is raised.
    """
    torch.compiler.set_stance("default")
    compile_in_place(model, mode)
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # compilers raise all kinds of errors
        torch.compiler.set_stance("force_eager")
        reason = next(filter(None, str(error).strip().splitlines()), type(error).__name__)
        log.warning("impl.compile: not possible here, continuing uncompiled (%s)", reason)
        return False
    return True
