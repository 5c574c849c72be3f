"""Compiled models as they were before: what cannot be looked into cannot be counted, nor differentiated twice."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def uncompiled() -> AbstractContextManager[Any]:
    """Inside, compiled models run uncompiled. Where nothing has been compiled, no compiler is loaded (two seconds)."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
