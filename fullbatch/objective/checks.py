"""Checks of the first pass of an objective: a loss that is a mean over samples, and a model that fits the data.

A mean is what makes sum_b n_b/N l_b one number for every partition of the data.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.tensors import device_of, preserved
from fullbatch.typing import Block, LossFunction


def require_mean_reduction(loss_fn: LossFunction) -> None:
    """Raise ``ValueError`` for a loss of PyTorch with another reduction than a mean, or with class weights."""
    if not callable(loss_fn):
        raise ValueError(f"loss_fn: {type(loss_fn).__name__}; expected a function (outputs, labels) -> mean loss")
    name, options = _name(loss_fn), getattr(loss_fn, "keywords", {})  # of functools.partial
    reduction = options.get("reduction", getattr(loss_fn, "reduction", "mean"))
    if reduction in ("sum", "none"):
        raise ValueError(
            f"loss_fn: {name} has reduction={reduction!r}, but the objective averages the mean losses of sub-batches; "
            "use reduction='mean'"
        )
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss) and loss_fn.weight is not None:
        raise ValueError(
            f"loss_fn: {name} with class weights divides by the sum of the weights of the sub-batch, so it is not a "
            "mean over samples; use a function that returns the mean of its losses with reduction='none'"
        )


def scalar(loss: Any, loss_fn: LossFunction) -> Tensor:
    """Return the loss of a sub-batch as a tensor without dimensions; ``ValueError`` if it is not one real number."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        kind = f"a {loss.dtype} tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"loss_fn: {_name(loss_fn)} returns {kind}; expected a scalar tensor, the mean over the samples "
            "(reduction='mean')"
        )
    return loss if loss.ndim == 0 else loss.reshape(())


class FirstPass:
    """Tests during the first pass over the data that the loss is a mean over samples, and names what does not fit.

    1. The loss of a sub-batch must be the mean of the losses of its halves, weighted by their numbers of samples, up to
       the square root of the precision. All are computed from the same outputs, so that batch statistics do not matter
       and the model is not used. The samples are sorted by their labels, so that a loss that ignores or weights some
       labels differs between the halves. Sub-batches of one sample are tested in pairs. A loss that draws random
       numbers cannot be tested; one with an attribute ``check_mean = False`` is not.
    2. Inside ``naming``, an error of the model or the loss becomes a ``ValueError`` that describes the block, until an
       evaluation of the same kind has succeeded.
    """

    def __init__(self, loss_fn: LossFunction) -> None:
        self.loss_fn = loss_fn
        self.pending = True
        """Whether the sub-batch that is evaluated comes after all tested ones."""
        self.count = 0
        """The number of tested sub-batches, those at the start of the longest pass so far."""
        self._key: int | None = None  # of the last of them
        self._tests_mean: bool = getattr(loss_fn, "check_mean", True)
        self._succeeded: set[str] = set()
        self._single: tuple[Tensor, Tensor] | None = None
        if self._tests_mean:
            require_mean_reduction(loss_fn)

    @contextlib.contextmanager
    def naming(self, block: Block, model: nn.Module, kind: str) -> Iterator[None]:
        """Turn an error of PyTorch in the evaluation of ``block`` into a ``ValueError``; see above."""
        try:
            yield
            self._succeeded.add(kind)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, IndexError, AssertionError, AttributeError) as error:
            if (kind in self._succeeded and not self.pending) or isinstance(error, torch.AcceleratorError):
                raise
            dtype = next((str(p.dtype) for p in model.parameters()), "no")
            reason = next(filter(None, str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(
                f"the model and {_name(self.loss_fn)} fail on inputs {_format(block.inputs)} and labels "
                f"{_format(block.labels)} ({dtype} parameters on {device_of(model)}): {reason}"
            ) from error

    @torch.no_grad()
    def __call__(self, outputs: Tensor, loss: Tensor, block: Block) -> None:
        """Raise ``ValueError`` if ``loss``, that of ``block``, is not the mean of its halves' losses."""
        if self._key == block.key:
            return  # another evaluation of the same block
        if self._tests_mean:
            self._test(outputs.detach(), block.labels.detach(), loss)
        self._key, self.count = block.key, self.count + 1

    def _test(self, outputs: Tensor, labels: Tensor, loss: Tensor) -> None:
        if outputs.ndim == 0 or len(outputs) != len(labels):
            raise ValueError(
                f"model: outputs {list(outputs.shape)} for labels {list(labels.shape)}; expected one row per sample. "
                "A loss with the attribute check_mean = False may have others"
            )
        ignored = _ignored_label(self.loss_fn)
        if ignored is not None and not labels.is_floating_point() and bool((labels == ignored).any()):
            raise ValueError(
                f"data: some labels are {ignored}, the ignore_index of {_name(self.loss_fn)}, which divides by the "
                "number of the other labels, so it is not a mean over samples; leave these samples out, or divide by "
                "the number of samples"
            )
        if bool(loss.isnan()) and bool(outputs.isfinite().all()):
            raise ValueError(f"loss_fn: {_name(self.loss_fn)} is NaN for finite outputs {list(outputs.shape)}")
        copies: int = getattr(self.loss_fn, "copies", 1)
        single = None
        if len(labels) == copies:
            single, other = (outputs, labels), self._single
            if other is not None and other[0].shape == outputs.shape and other[1].shape == labels.shape:
                outputs, labels = torch.cat([other[0], outputs]), torch.cat([other[1], labels])
        self._single = single
        if len(labels) > copies:
            self._compare_halves(outputs, labels, copies)

    def _compare_halves(self, outputs: Tensor, labels: Tensor, copies: int) -> None:
        samples = len(labels) // copies
        half = samples // 2
        order = labels.reshape(samples, -1).float().sum(dim=1).argsort(stable=True)
        rows = (order[:, None] * copies + torch.arange(copies, device=order.device)).flatten()
        outputs, labels = outputs[rows], labels[rows]
        parts = [slice(None), slice(half * copies), slice(half * copies, None), slice(None)]
        losses = self._losses(outputs, labels, parts)
        if outputs.is_floating_point() and outputs.element_size() < 4:  # where low precision would hide a difference
            with contextlib.suppress(RuntimeError):  # of a loss that needs its own dtype
                outputs, losses = outputs.float(), self._losses(outputs.float(), labels, parts)
        whole, first, second, again = (float(loss) for loss in losses)
        mean = (half * first + (samples - half) * second) / samples
        precision = max((torch.finfo(t.dtype).eps for t in (outputs, losses[0]) if t.is_floating_point()), default=0.0)
        rounding = torch.finfo(losses[0].dtype).eps if losses[0].is_floating_point() else 0.0
        tolerance = precision**0.5 * max(abs(whole), abs(first), abs(second))
        tolerance += 8 * rounding * float(outputs.abs().max())
        is_random = abs(whole - again) > tolerance
        if math.isfinite(whole) and not abs(whole - mean) <= tolerance and not is_random:  # a half may have NaN
            raise ValueError(
                f"loss_fn: {_name(self.loss_fn)} is not a mean over samples: it is {whole:.6g} for {samples} samples, "
                f"but the mean of its halves' losses ({first:.6g} and {second:.6g}) is {mean:.6g}. The result would "
                "depend on the sizes of the blocks. Use reduction='mean'; in place of class weights or ignore_index, "
                "which divide by other numbers, divide by the number of samples. A loss with the attribute "
                "check_mean = False is not tested."
            )

    def _losses(self, outputs: Tensor, labels: Tensor, parts: list[slice]) -> list[Tensor]:
        with preserved(list(self.loss_fn.buffers()) if isinstance(self.loss_fn, nn.Module) else []):
            return [scalar(self.loss_fn(outputs[part], labels[part]), self.loss_fn) for part in parts]


def _ignored_label(loss_fn: LossFunction) -> int | None:
    """Return the ``ignore_index`` of a cross-entropy of PyTorch; None for other losses."""
    if isinstance(loss_fn, nn.CrossEntropyLoss | nn.NLLLoss):
        return loss_fn.ignore_index
    function, options = getattr(loss_fn, "func", loss_fn), getattr(loss_fn, "keywords", {})
    return int(options.get("ignore_index", -100)) if function in (F.cross_entropy, F.nll_loss) else None


def _name(loss_fn: LossFunction) -> str:
    function = getattr(loss_fn, "func", loss_fn)  # of functools.partial
    return getattr(function, "__name__", type(function).__name__)


def _format(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
