"""The base class of this package's optimizers."""

from inspect import unwrap

import torch


class EagerOptimizer(torch.optim.Optimizer):
    """A ``torch.optim.Optimizer`` that does not import PyTorch's compiler, which takes seconds.

    PyTorch decorates these four methods so that ``torch.compile`` does not trace them, and the first call of the
    decorator imports the compiler. This package compiles models, never optimizers, and needs no decorator.
    """

    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = unwrap(torch.optim.Optimizer.load_state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)
