"""Time and memory of regularizers, losses and Hessian-vector products, compared with the plain gradient."""

from collections.abc import Callable
from functools import partial

import torch
from bench import Bench
from rich.console import Console
from timing import Case, Timing, Title, measure
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional as F

from fullbatch import FullBatchObjective, GradRegularizer
from fullbatch.runtime.compilation import compile_in_place
from fullbatch.runtime.live_memory import peak_of

Pair = tuple[Tensor, Tensor]
Pairs = list[Pair]
MIB, SHARE = 1 << 20, 4  # a quarter of the images, because exact products are slow
IMPLEMENTATIONS = ("forward-differences", "central-differences", "autograd", "forward-over-reverse")
DIFFERENCES = IMPLEMENTATIONS[:2]


def regularized(model: nn.Module, pairs: Pairs, implementation: str) -> FullBatchObjective:
    """Return the objective with a gradient regularizer."""
    regularizer = GradRegularizer(
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        F.cross_entropy,
        block_strength=0.5,
        implementation=implementation,
    )
    return FullBatchObjective(model, F.cross_entropy, pairs, regularizer=regularizer)


def products(bench: Bench, model: str, batch_size: int) -> list[Timing]:
    """Time each of them on the same blocks, which are made in advance."""
    samples = max(len(bench.labels) // SHARE, batch_size)
    blocks = bench.loader(batch_size, samples=samples).blocks(0)
    pairs = [(inputs, labels) for inputs, labels, _ in blocks]
    network = bench.model(model)
    plain = bench.objective(network, pairs)
    runs: dict[str, Callable[[], object]] = {"gradient": plain.evaluate, "loss alone": plain.loss}
    runs |= {f"regularized, {name}": regularized(network, pairs, name).evaluate for name in IMPLEMENTATIONS}
    direction = plain.evaluate().gradient
    runs |= {
        f"Hessian-vector product, {name}": partial(plain.hessian_product, direction, name)
        for name in ("autograd", "forward-over-reverse")
    }
    cases = [bench.case(name, run, samples) for name, run in runs.items()]
    if bench.options.compile:
        cases += compiled(bench, model, pairs, direction)
    return measure(Title("products", model, batch_size), cases, bench.options.short_turns, bench.device)


def compiled(bench: Bench, model: str, pairs: Pairs, direction: list[Tensor]) -> list[Case]:
    """Return the cases that can be compiled: evaluations of the model, and a derivative of its gradient as a whole.

    Our exact products are not among them, because the gradient of a compiled model has no derivative.
    """
    samples, network = sum(len(labels) for _, labels in pairs), compile_in_place(bench.model(model))
    runs: dict[str, Callable[[], object]] = {"gradient, compiled": bench.objective(network, pairs).evaluate}
    runs |= {f"regularized, {name}, compiled": regularized(network, pairs, name).evaluate for name in DIFFERENCES}
    whole = partial(forward_over_reverse, torch.compile(derivative, dynamic=False), bench.model(model), pairs)
    runs["torch.func's jvp of the gradient, compiled as a whole"] = partial(whole, direction)
    return [bench.case(name, run, samples, may_fail=True) for name, run in runs.items()]


Values = dict[str, Tensor]


def derivative(model: nn.Module, values: Values, buffers: Values, block: Pair, direction: Values) -> Values:
    """Return the derivative of the gradient at ``values`` along ``direction``."""

    def loss(at: Values) -> Tensor:
        state = {**at, **{name: buffer.clone() for name, buffer in buffers.items()}}
        return F.cross_entropy(functional_call(model, state, (block[0],)), block[1])

    product: Values = jvp(grad(loss), (values,), (direction,))[1]
    return product


def forward_over_reverse(product: Callable[..., Values], model: nn.Module, pairs: Pairs, v: list[Tensor]) -> None:
    """Apply ``product``, which is ``derivative`` or its compiled version, to each block."""
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buffers, direction = dict(model.named_buffers()), dict(zip(values, v, strict=True))
    for block in pairs:
        product(model, values, buffers, block, direction)


def memory(bench: Bench, model: str, batch_size: int, console: Console) -> None:
    """Print the peak memory of plain and regularized gradients of two blocks, beyond the memory before."""
    network, title = bench.model(model), f"{model}, blocks of {batch_size}"
    pairs = [bench.block(batch_size)] * 2
    parameters = sum(p.numel() * p.element_size() for p in network.parameters()) / MIB
    objectives = {"plain": bench.objective(network, pairs)}
    objectives |= {name: regularized(network, pairs, name) for name in DIFFERENCES}
    peaks = {name: peak_of(objective.evaluate, bench.device) / MIB for name, objective in objectives.items()}
    for name, peak in peaks.items():
        copies = (peak - peaks["plain"]) / parameters
        bench.facts[f"memory: {title}, {name}, MiB"] = peak
        bench.facts[f"memory: {title}, {name}, copies of the parameters beyond plain"] = copies
        console.print(f"memory: {title}, {name}: {peak:,.1f} MiB, plain + {copies:.2f} copies of the parameters")
