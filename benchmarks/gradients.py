"""Full-batch gradients, compared with the plain loop and with the limits of the machine."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from baseline import ALPHA, EPS, RATE, PlainLoop
from bench import Bench
from limits import layers_alone, low_dtypes
from timing import Case, Timing, Title, measure
from torch.nn import functional as F

from fullbatch import FullBatchObjective, GradRegularizer
from fullbatch.objective.arithmetic import Arithmetic
from fullbatch.objective.flops import count_flops
from fullbatch.runtime.compilation import compile_in_place
from fullbatch.runtime.device import tf32
from fullbatch.runtime.peak import matmul_peak

PLAIN = "plain loop"


@dataclass(frozen=True)
class Setting:
    """How our gradients are computed.

    ``rounded`` rounds the factors of CUDA's float32 products to TF32; ``compiled`` is as in `impl.compile`.
    """

    memory_format: torch.memory_format = torch.channels_last
    dtype: torch.dtype = torch.float32
    rounded: bool = False
    compiled: bool | Literal["reduce-overhead"] = False

    @property
    def name(self) -> str:
        """The dtype, the memory format and how it is compiled."""
        dtype = "TF32" if self.rounded else str(self.dtype).removeprefix("torch.")
        memory = "channels_last" if self.memory_format == torch.channels_last else ""
        compiled = {False: "", True: "compiled"}.get(self.compiled, f"compiled {self.compiled}")
        return ", ".join(filter(None, (dtype, memory, compiled)))


def settings(bench: Bench) -> Iterator[Setting]:
    """Yield all settings that the device supports."""
    cuda, dtypes = bench.device.type == "cuda", (torch.float32, *low_dtypes(bench.device))
    yield Setting(torch.contiguous_format)
    yield Setting()
    if cuda:
        yield Setting(rounded=True)
    for dtype in dtypes[1:]:
        yield Setting(dtype=dtype)
    if bench.options.compile:
        modes: tuple[bool | Literal["reduce-overhead"], ...] = (True, "reduce-overhead") if cuda else (True,)
        yield from (Setting(dtype=dtype, compiled=mode) for mode in modes for dtype in dtypes)


def objective(
    bench: Bench, name: str, batch_size: int, setting: Setting, *, samples: int | None = None, **options: Any
) -> FullBatchObjective:
    """Return our objective, on all images or on ``samples`` of them, ``regularized`` by forward differences."""
    model = bench.model(name, setting.memory_format)
    if options.pop("regularized", False):
        optimizer = torch.optim.SGD(model.parameters(), RATE)
        options["regularizer"] = GradRegularizer(model, optimizer, F.cross_entropy, block_strength=ALPHA, eps=EPS)
    if setting.compiled:
        compile_in_place(model, None if setting.compiled is True else setting.compiled)
    low = setting.dtype if setting.dtype != torch.float32 else False
    data = bench.loader(batch_size, samples=samples, memory_format=setting.memory_format).blocks(0)
    return bench.objective(model, data, arithmetic=Arithmetic(autocast=low), **options)


def ours(bench: Bench, name: str, batch_size: int, setting: Setting, **options: Any) -> Case:
    """Return the case that evaluates ``objective``."""
    evaluate = objective(bench, name, batch_size, setting, **options).evaluate
    dtype = None if setting.rounded or options else setting.dtype  # the limits apply to plain gradients without TF32
    run = partial(_with_tf32, evaluate) if setting.rounded else evaluate
    return bench.case(setting.name, run, dtype=dtype, may_fail=bool(setting.compiled))


def _with_tf32(run: Callable[[], object]) -> None:
    with tf32(True):
        run()


def gradient(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """Time the plain loop, our gradient in all settings, and the layers alone, with shares of the limits."""
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
        timings = measure(Title("gradient", model, batch_size), cases, bench.turns, bench.device)
    flops = count_flops(bench.objective(bench.model(model), []), [(block[0][:2], block[1][:2])]).gradient
    bench.facts[f"operations of the gradient of an image: {model}"] = flops
    limit = dict(zip(alone, timings[-len(alone) :], strict=True))
    return [_with_shares(timing, limit, flops, bench.device) for timing in timings]


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
    """Time the regularized gradient of the plain loop and ours, by forward differences, in float32."""
    exact = [setting for setting in settings(bench) if setting.dtype == torch.float32 and not setting.rounded]
    with PlainLoop(bench.loop(model, batch_size, regularized=True)) as loop:
        cases = [ours(bench, model, batch_size, setting, regularized=True) for setting in exact]
        title = Title("regularized gradient", model, batch_size)
        return measure(title, [bench.case(PLAIN, loop), *cases], bench.options.short_turns, bench.device)


def allocator(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """Time the plain loop without and with freed memory kept in the process."""
    with ExitStack() as stack:
        loops = {
            name: stack.enter_context(PlainLoop(bench.loop(model, batch_size, keep_memory=keep)))
            for name, keep in ((PLAIN, False), ("plain loop, freed memory kept", True))
        }
        cases = [bench.case(name, loop) for name, loop in loops.items()]
        return measure(Title("allocator", model, batch_size), cases, bench.turns, bench.device)
