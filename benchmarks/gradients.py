"""Gradients of all the images, beside the plain loop and beside the limits of the machine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from baseline import ALPHA, EPS, RATE, PlainLoop
from bench import Bench
from limits import layers_alone, low_dtypes
from timing import Case, Timing, Title, measure
from torch.nn import functional as F

from fullbatch import FullBatchObjective, GradRegularizer
from fullbatch.objective.flops import count_flops
from fullbatch.runtime.compilation import compile_in_place
from fullbatch.runtime.cuda_graphs import recorder_on
from fullbatch.runtime.cuda_streams import streams_on
from fullbatch.runtime.device import tf32
from fullbatch.runtime.peak import matmul_peak

PLAIN = "plain loop"


@dataclass(frozen=True)
class Setting:
    """How our gradients are computed; ``rounded``: CUDA's float32 products to TF32; ``replayed``: CUDA graphs.

    ``in_flight`` blocks are evaluated at the same time.
    """

    memory_format: torch.memory_format = torch.channels_last
    dtype: torch.dtype = torch.float32
    rounded: bool = False
    compiled: bool = False
    replayed: bool = False
    in_flight: int = 1

    @property
    def name(self) -> str:
        """The dtype and what else there is."""
        words = {"channels_last": self.memory_format == torch.channels_last, "compiled": self.compiled}
        words |= {"replayed": self.replayed, f"{self.in_flight} in flight": self.in_flight > 1}
        dtype = "TF32" if self.rounded else str(self.dtype).removeprefix("torch.")
        return ", ".join([dtype, *(word for word, true in words.items() if true)])


def settings(bench: Bench) -> Iterator[Setting]:
    """Yield what the device has."""
    cuda, dtypes = bench.device.type == "cuda", (torch.float32, *low_dtypes(bench.device))
    for replayed in (False, True) if cuda else (False,):
        yield Setting(torch.contiguous_format, replayed=replayed)
        yield Setting(replayed=replayed)
        if cuda:
            yield Setting(rounded=True, replayed=replayed)
        for dtype in low_dtypes(bench.device):
            yield Setting(dtype=dtype, replayed=replayed)
    for number in (2, 4) if cuda else ():
        for dtype in dtypes:
            yield Setting(dtype=dtype, replayed=True, in_flight=number)
    for number in (1, 2, 4) if cuda else (1,):
        for dtype in dtypes if bench.options.compile else ():  # takes minutes: only as it is best run
            yield Setting(dtype=dtype, compiled=True, replayed=cuda, in_flight=number)


def objective(
    bench: Bench, name: str, batch_size: int, setting: Setting, *, samples: int | None = None, **options: Any
) -> FullBatchObjective:
    """Return ours, on all images or as many ``samples``; ``regularized=True``: by forward differences."""
    model = bench.model(name, setting.memory_format)
    if options.pop("regularized", False):
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        options["regularizer"] = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=ALPHA, eps=EPS)
    if setting.compiled:
        compile_in_place(model)
    if setting.replayed:
        options["recorder"] = recorder_on(bench.device)
    if setting.in_flight > 1:
        options["streams"] = streams_on(bench.device, setting.in_flight)
    low = setting.dtype if setting.dtype != torch.float32 else False
    data = bench.loader(batch_size, samples=samples, memory_format=setting.memory_format).blocks(0)
    return bench.objective(model, data, mixed_precision=low, **options)


def ours(bench: Bench, name: str, batch_size: int, setting: Setting, **options: Any) -> Case:
    """Return the case of ``objective``."""
    evaluate = objective(bench, name, batch_size, setting, **options).evaluate
    dtype = None if setting.rounded or options else setting.dtype  # the limits are those of plain gradients in float32
    run = partial(_with_tf32, evaluate) if setting.rounded else evaluate
    return bench.case(setting.name, run, dtype=dtype, may_fail=setting.compiled)


def _with_tf32(run: Callable[[], object]) -> None:
    with tf32(True):
        run()


def gradient(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """The plain loop, ours in all settings, and the layers alone; with shares of what is possible."""
    block, repetitions = bench.block(batch_size), -(-len(bench.labels) // batch_size)
    alone = {
        dtype: layers_alone(bench.model(model, torch.channels_last), block, dtype, repetitions)
        for dtype in (torch.float32, *low_dtypes(bench.device))
    }
    with PlainLoop(bench.loop(model, batch_size)) as loop:
        cases = [
            bench.case(PLAIN, loop, dtype=torch.float32),
            *(ours(bench, model, batch_size, setting) for setting in settings(bench)),
            *(
                bench.case(f"its layers alone, {str(dtype)[6:]}", run, repetitions * batch_size, dtype=dtype)
                for dtype, run in alone.items()
            ),
        ]
        found = measure(Title("gradient", model, batch_size), cases, bench.turns, bench.device)
    flops = count_flops(bench.objective(bench.model(model), []), [(block[0][:2], block[1][:2])]).gradient
    bench.facts[f"operations of the gradient of an image: {model}"] = flops
    limit = dict(zip(alone, found[-len(alone) :], strict=True))
    return [_with_shares(timing, limit, flops, bench.device) for timing in found]


def _with_shares(timing: Timing, layers: dict[torch.dtype, Timing], flops: float, device: torch.device) -> Timing:
    if timing.dtype is None:
        return timing
    rate = timing.samples_per_second
    return replace(
        timing,
        of_layers=rate / layers[timing.dtype].samples_per_second,
        of_peak=rate * flops / matmul_peak(device, timing.dtype),
    )


def regularized(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """The plain loop with the regularizer by forward differences, and ours in float32, which differences need."""
    exact = [setting for setting in settings(bench) if setting.dtype == torch.float32 and not setting.rounded]
    with PlainLoop(bench.loop(model, batch_size, regularized=True)) as loop:
        cases = [ours(bench, model, batch_size, setting, regularized=True) for setting in exact]
        title = Title("regularized gradient", model, batch_size)
        return measure(title, [bench.case(PLAIN, loop), *cases], bench.options.short_turns, bench.device)


def allocator(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """What it gives to keep freed memory in the process: the plain loop without and with it."""
    with ExitStack() as stack:
        loops = {
            name: stack.enter_context(PlainLoop(bench.loop(model, batch_size, keep_memory=keep)))
            for name, keep in ((PLAIN, False), ("plain loop, freed memory kept", True))
        }
        cases = [bench.case(name, loop) for name, loop in loops.items()]
        return measure(Title("allocator", model, batch_size), cases, bench.turns, bench.device)
