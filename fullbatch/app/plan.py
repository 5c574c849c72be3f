"""A plan: what a run will cost, counted and estimated from a few blocks before it is paid."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from rich.console import Console
from rich.table import Table
from torch import nn
from torch.optim import Optimizer

from fullbatch.build.data import about, build_data
from fullbatch.build.optimizer import build_optimizer
from fullbatch.build.precision import build_compiled, build_precision
from fullbatch.build.trainer import build_mode, build_model, build_step, set_up_machine
from fullbatch.data.dataset import ImageData
from fullbatch.models.compatibility import check_compatible
from fullbatch.optim.schedules import schedule_named
from fullbatch.runtime.device import DTYPES, describe, find_device
from fullbatch.runtime.live_memory import peak_of
from fullbatch.runtime.peak import matmul_peak
from fullbatch.settings import Run
from fullbatch.settings.data import LMDB, NoDatabase
from fullbatch.tensors import device_of
from fullbatch.training.cost import Cost, flops_of, num_bytes, num_due, peak_bytes
from fullbatch.training.state import Row
from fullbatch.training.step import BlockSequence, Step
from fullbatch.training.trainer import set_learning_rates

_PROBED = 4  # blocks that are timed, of each stream
_REPLAYED = 12  # and those after them, where the first are recorded for them


@dataclass(frozen=True)
class Trial:
    """A run that is built to be tried on a few blocks."""

    run: Run
    data: ImageData
    model: nn.Module
    optimizer: Optimizer
    step: Step

    @property
    def number(self) -> int:
        """The step to try: the first one at full learning rate."""
        return self.run.hyp.warmup + 1

    @property
    def blocks(self) -> BlockSequence:
        """The blocks of that step."""
        return self.step.data.blocks(self.number, shuffle=self.run.hyp.shuffle)

    @property
    def stochastic(self) -> bool:
        """Its mode."""
        return build_mode(self.run.hyp)(self.number)

    def timed_step(self, num_blocks: int) -> tuple[Row, float]:
        """Take it on the first blocks alone; return its row and its seconds."""
        start = time.perf_counter()
        row = replace(self.step, max_blocks=num_blocks)(self.number, stochastic=self.stochastic)
        return row, time.perf_counter() - start

    def probe(self) -> tuple[Row, float]:
        """Take it on a few blocks; return its row and the seconds a sample, of those that are replayed if any are."""
        first, all_of_them = (number * self.run.impl.blocks_in_flight for number in (_PROBED, _PROBED + _REPLAYED))
        row, seconds = self.timed_step(first)
        more = self.blocks[first:all_of_them].sizes
        if self.step.objective.replays is None or self.stochastic or not more:
            return row, seconds / sum(self.blocks[:first].sizes)
        return row, (self.timed_step(first + len(more))[1] - seconds) / sum(more)


def print_plan(run: Run, console: Console) -> None:
    """Print what the run will cost, and train nothing; ``ValueError`` and ``OSError`` for mistakes."""
    set_up_machine(run)
    rounds = run.data.db.rounds if isinstance(run.data.db, LMDB) and not run.hyp.train_semi_stochastic else 1
    trial = _trial(replace(run, data=replace(run.data, db=NoDatabase(name="none"))))  # the database need not be there
    cost = estimate(trial, rounds)
    table = Table(title=f"plan of {run.name}: nothing is trained", show_header=False)
    for name, text in (*_work(trial, cost, rounds), *_memory(trial, rounds), *_time(trial, cost)):
        table.add_row(name, text)
    console.print(table)
    console.print(f"{describe(device_of(trial.model))}; times are estimates from a few blocks", highlight=False)


def _trial(run: Run) -> Trial:
    seed = run.seed or 0
    with about("impl"):
        device = find_device(run.impl.device)
    data = build_data(run, seed)
    model = build_model(run, data, seed, device).train()
    optimizer = build_optimizer(run.hyp, model)
    trial = Trial(run, data, model, optimizer, build_step(run, data, model, optimizer, seed))
    with about("model"):
        check_compatible(model, next(iter(trial.blocks[:1])).inputs[:1], len(data.classes))
    build_compiled(run, trial.step)
    with about("hyp.scheduler"):
        schedule = schedule_named(run.hyp.scheduler, run.hyp.steps, run.hyp.warmup)
    set_learning_rates(optimizer, schedule(trial.number))
    return trial


def estimate(trial: Trial, rounds: int = 1) -> Cost:
    """Try a step on a few blocks and return what the run costs, on ``rounds`` copies of the data."""
    hyp, objective, blocks = trial.run.hyp, trial.step.objective, trial.blocks
    trial.timed_step(1)  # warms up
    row, seconds_a_sample = trial.probe()
    start = time.perf_counter()
    float(objective.over(blocks[:1]).loss().loss)
    seconds_of_loss = time.perf_counter() - start
    return Cost(
        samples=rounds * sum(blocks.sizes),
        steps=hyp.steps,
        evaluations=row["evaluations"],
        loss_evaluations=row["loss_evaluations"],
        validations=num_due(hyp.steps, trial.run.impl.validate_every_nth_step),
        validation_samples=len(trial.data.valid) * (2 if hyp.test_time_flips else 1),
        flops=flops_of(objective, blocks),
        seconds_a_sample=seconds_a_sample,
        seconds_a_loss=seconds_of_loss / sum(blocks[:1].sizes),
    )


def _work(trial: Trial, cost: Cost, rounds: int) -> Iterator[tuple[str, str]]:
    hyp, sizes = trial.run.hyp, trial.blocks.sizes
    passes = rounds * sum(max(size // hyp.sub_batch, 1) for size in sizes)
    updates = math.ceil(rounds * len(sizes) / hyp.blocks_per_update) if trial.stochastic else 1
    mode = "stochastic" if trial.stochastic else "full batch"
    losses = f", {cost.loss_evaluations:g} losses" if cost.loss_evaluations else ""
    step, total = cost.flops_of_a_step, f"{cost.steps * cost.evaluations:,.10g}"
    yield "samples", f"{cost.samples:,} in {rounds * len(sizes):,} blocks, {passes:,} sub-batches"
    yield "a step", f"{mode}: {updates:,} updates, {cost.evaluations:g} gradient evaluations{losses}"
    yield "the run", f"{cost.steps:,} steps, {total} evaluations, {cost.validations:,} validations"
    yield "operations", f"{_tera(step)} TFLOP a step, {_tera(step * cost.steps)} TFLOP in all"


def _memory(trial: Trial, rounds: int) -> Iterator[tuple[str, str]]:
    model, device = trial.model, device_of(trial.model)
    state = num_bytes(trial.optimizer.state) + trial.run.hyp.evaluate_ema * num_bytes(list(model.parameters()))
    images = rounds * sum(trial.blocks.sizes) * trial.data.channels * trial.data.pixels**2
    evaluate = trial.step.objective.over(trial.blocks[: trial.run.impl.blocks_in_flight]).evaluate
    held = peak_bytes(device)
    yield "model", f"{_mib(num_bytes(model.state_dict()))}, optimizer and average of the weights {_mib(state)}"
    yield "an evaluation", f"{_mib(peak_of(evaluate, device))} beside"
    yield "images", f"{_mib(images)} if they are cached (data.caching)"
    if held is not None:
        yield "peak so far", f"{_mib(held)} of {'the device' if device.type == 'cuda' else 'the process'}"


def _time(trial: Trial, cost: Cost) -> Iterator[tuple[str, str]]:
    precision = build_precision(trial.run, device_of(trial.model)) or DTYPES[trial.run.impl.dtype]
    peak = matmul_peak(device_of(trial.model), precision)
    rate = cost.evaluations / cost.seconds_a_sample
    yield "speed", f"{rate:,.0f} gradients of samples a second; {cost.rate / peak:.0%} of {_tera(peak)} TFLOP/s"
    yield "a step takes", f"{_duration(cost.seconds_of_a_step)}, a validation {_duration(cost.seconds_of_a_validation)}"
    yield "the run takes", _duration(cost.seconds)


def _mib(number: int) -> str:
    return f"{number / (1 << 20):,.1f} MiB"


def _tera(number: float) -> str:
    return f"{number / 1e12:,.0f}" if number >= 1e14 else f"{number / 1e12:.3g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
