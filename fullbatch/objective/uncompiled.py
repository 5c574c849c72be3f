"""Running compiled models uncompiled: compiled code cannot be counted, nor differentiated twice."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled models run uncompiled; does not import the compiler where it is not loaded."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
