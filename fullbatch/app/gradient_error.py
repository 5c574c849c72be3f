"""The error of the full gradient against float64 and from run to run, by dtype, block size and fast path."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.table import Table
from torch import Tensor, nn

from fullbatch.app.job_scope import job_scope
from fullbatch.app.restore import restore
from fullbatch.build.data import build_data
from fullbatch.build.problem import build_problem, set_up_machine
from fullbatch.data.images import ImageData
from fullbatch.models.weights import load_weights
from fullbatch.runtime.compilation import compile_in_place
from fullbatch.runtime.device import describe, find_device, tf32
from fullbatch.settings.parse import parse_tree, replace_keys, to_tree
from fullbatch.tensors import flatten
from fullbatch.training.tables import write_table

log = logging.getLogger(__name__)

UNSCALED = {"impl.mixed_precision": False, "impl.grad_scaling": False}
FLOAT64 = {**UNSCALED, "impl.dtype": "double", "impl.accumulation_dtype": "double"}
FLOAT32 = {**UNSCALED, "impl.dtype": "float", "impl.memory": "contiguous"}
BFLOAT16 = {**FLOAT32, "impl.mixed_precision": True}
FLOAT16 = {**FLOAT32, "impl.mixed_precision": "float16", "impl.grad_scaling": True}


@dataclass(frozen=True)
class Variant:
    """A way to compute the gradient.

    Args:
        name: of the row in the table.
        changes: dotted key -> value in the configuration.
        prepare: model -> the model that is evaluated.
        tf32: whether matrix products may use TF32.
        needs: the type of device; ``cpu``: any.
        may_fail: whether it does not work on some machines; an error of any other variant is raised.
        repeated: whether to compare two evaluations, too.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    tf32: bool = False
    needs: str = "cpu"
    may_fail: bool = False
    repeated: bool = False


class Errors(NamedTuple):
    """Relative errors ||g - exact||_p / ||exact||_p for p = 1, 2 and infinity."""

    l1: float
    l2: float
    max: float


VARIANTS = (
    Variant("float32", FLOAT32, repeated=True),
    Variant("float32, sums in float64", {**FLOAT32, "impl.accumulation_dtype": "double"}),
    Variant("float32, channels_last", {**FLOAT32, "impl.memory": "channels_last"}),
    *(Variant(f"float32, blocks of {n}", {**FLOAT32, "data.batch_size": n}) for n in (32, 128, 512)),
    Variant("float32, TF32", FLOAT32, tf32=True, needs="cuda"),
    Variant("float32, compiled", FLOAT32, prepare=compile_in_place, may_fail=True),
    Variant("bfloat16 autocast", BFLOAT16, repeated=True),
    Variant("bfloat16 autocast, channels_last", {**BFLOAT16, "impl.memory": "channels_last"}),
    Variant("float16 autocast, scaled losses", FLOAT16, needs="cuda"),  # CPUs take eighty times as long as for float32
)


def relative_errors(gradient: Sequence[Tensor], exact: Sequence[Tensor]) -> Errors:
    """Return the errors of ``gradient`` against ``exact``, both as one vector, in float64."""
    difference, reference = flatten(gradient).double() - flatten(exact).double(), flatten(exact).double()
    return Errors(*(float(difference.norm(p) / reference.norm(p)) for p in (1, 2, torch.inf)))


def gradient_error_job(cfg: DictConfig) -> int:
    """Measure, print a table and write it as CSV into the run folder; return the exit status, see ``ExitStatus``."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    with job_scope(folder, catch_signals=False) as scope:
        rows = list(measure(to_tree(cfg), HydraConfig.get().overrides.task))
        title = "relative error against float64, same blocks"
        table = Table("full gradient", "L1", "L2", "L-inf", "seconds", title=title)
        for row in rows:
            errors = (f"{row[norm]:.1e}" for norm in Errors._fields)
            table.add_row(row["variant"], *errors, f"{row['seconds']:.2f}")
        scope.console.print(table)
        write_table(folder / "floating_point_accuracy.csv", ["variant", *Errors._fields, "seconds"], rows)
    return scope.status


def measure(
    tree: dict[str, Any], overrides: Sequence[str] = (), variants: Sequence[Variant] = VARIANTS
) -> Iterator[dict[str, Any]]:
    """Yield one row per variant: its errors against float64 on the same blocks, and its seconds.

    The gradient is that of the configuration's objective, regularizer included, at the initial weights or at those of
    the checkpoint ``impl.checkpoint.name``. Variants that this machine does not support are logged and left out.
    """
    weights, name = None, parse_tree(tree).impl.checkpoint.name
    if name is not None:
        tree, stored = restore(tree, name, overrides)
        weights = stored.checkpoint["state"]["model"] if stored.checkpoint else stored.weights
    run = parse_tree(tree)
    set_up_machine(run)
    data, device = build_data(run, run.seed or 0), find_device(run.impl.device)
    log.info("%s; %d images in blocks of %d", describe(device), len(data.train), run.data.batch_size)
    gradient = partial(_gradient, tree, data, weights)
    exact: dict[str, list[Tensor]] = {}  # for each size of the blocks
    for variant in variants:
        if variant.needs not in ("cpu", device.type):
            log.warning("%s: not supported here (needs %s)", variant.name, variant.needs)
            continue
        size = {key: value for key, value in variant.changes.items() if key == "data.batch_size"}
        if str(size) not in exact:
            exact[str(size)], _ = gradient(Variant("float64", {**FLOAT64, **size}))
        try:
            (result, seconds), again = gradient(variant), gradient(variant) if variant.repeated else None
        except RuntimeError as error:
            if not variant.may_fail:
                raise
            log.warning("%s: not supported here (%s)", variant.name, str(error).strip().splitlines()[0])
            continue
        yield {"variant": variant.name, **relative_errors(result, exact[str(size)])._asdict(), "seconds": seconds}
        if again is not None:
            repeated = relative_errors(again[0], result)
            yield {"variant": f"{variant.name}, run to run", **repeated._asdict(), "seconds": again[1]}


def _gradient(
    tree: dict[str, Any], data: ImageData, weights: dict[str, Tensor] | None, variant: Variant
) -> tuple[list[Tensor], float]:
    """Return the gradient as the variant computes it, and the seconds of the evaluation."""
    run = parse_tree(replace_keys(tree, variant.changes))
    problem = build_problem(run, run.seed or 0, data=data)
    variant.prepare(problem.model.train())
    if weights is not None:
        load_weights(problem.model, weights)
    with tf32(variant.tf32):
        start = time.perf_counter()
        evaluation = problem.objective.evaluate()
        float(evaluation.loss)  # waits for the device
        return evaluation.gradient, time.perf_counter() - start
