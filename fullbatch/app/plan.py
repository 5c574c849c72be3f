"""The plan of a run: its cost, counted and estimated from a few blocks."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from rich.console import Console
from rich.table import Table

from fullbatch.app.job import warn_about
from fullbatch.build.data import about
from fullbatch.build.precision import build_compiled
from fullbatch.build.problem import Problem, build_problem
from fullbatch.build.trainer import build_mode, build_step
from fullbatch.optim.schedules import schedule_named
from fullbatch.runtime.device import describe
from fullbatch.runtime.live_memory import peak_of
from fullbatch.runtime.peak import matmul_peak
from fullbatch.settings import Run
from fullbatch.settings.data import LMDB, NoDatabase
from fullbatch.tensors import device_of
from fullbatch.training.cost import Cost, flops_of, num_bytes, num_due, peak_bytes
from fullbatch.training.state import Row, TrainState
from fullbatch.training.step import BlockSequence, DivergedError
from fullbatch.training.trainer import set_learning_rates

_PROBED = 4  # blocks that are timed


@dataclass(frozen=True)
class PlannedStep:
    """The step of a problem that is timed on a few blocks: the first one at full learning rate."""

    problem: Problem
    number: int
    stochastic: bool

    @property
    def run(self) -> Run:
        """The settings."""
        return self.problem.run

    @property
    def blocks(self) -> BlockSequence:
        """The blocks of the step."""
        return self.problem.loader.blocks(self.number, shuffle=self.run.hyp.shuffle)

    def take(self, num_blocks: int) -> tuple[Row, float]:
        """Take the step on its first blocks; return its row and its seconds."""
        start = time.perf_counter()
        state = TrainState(self.problem.model, self.problem.optimizer)
        step = build_step(replace(self.problem, max_blocks=num_blocks), state)
        row = step(self.number, stochastic=self.stochastic)
        return row, time.perf_counter() - start


def print_plan(run: Run, console: Console) -> None:
    """Print the cost of the run without training; ``ValueError``, ``OSError`` and ``DivergedError`` as a run."""
    rounds = run.data.db.rounds if isinstance(run.data.db, LMDB) and not run.hyp.train_semi_stochastic else 1
    planned = _build(replace(run, data=replace(run.data, db=NoDatabase(name="none"))))  # the database need not be there
    try:
        cost = estimate(planned, rounds)
    except DivergedError as error:
        raise DivergedError(f"no plan, because the step that was timed diverged: {error}") from error
    table = Table(title=f"plan of {run.name}: nothing is trained", show_header=False)
    for name, text in (*_work(planned, cost, rounds), *_memory(planned, rounds), *_time(planned, cost)):
        table.add_row(name, text)
    console.print(table)
    warn_about(run)
    console.print(
        f"{describe(device_of(planned.problem.model))}; times are estimates from a few blocks", highlight=False
    )


def _build(run: Run) -> PlannedStep:
    problem = build_problem(run, run.seed or 0)
    problem.check_smallest_sub_batch()
    problem.model.train()
    build_compiled(run, problem.objective.over(problem.loader.blocks(0)[:1]))
    number = run.hyp.warmup + 1
    with about("hyp.scheduler"):
        schedule = schedule_named(run.hyp.scheduler, run.hyp.steps, run.hyp.warmup)
    set_learning_rates(problem.optimizer, schedule(number))
    return PlannedStep(problem, number, build_mode(run.hyp)(number))


def estimate(planned: PlannedStep, rounds: int = 1) -> Cost:
    """Time the step on a few blocks; return the cost of the run on ``rounds`` copies of the data."""
    hyp, objective, blocks = planned.run.hyp, planned.problem.objective, planned.blocks
    planned.take(1)  # warms up
    row, seconds = planned.take(_PROBED)
    start = time.perf_counter()
    float(objective.over(blocks[:1]).loss().loss)
    seconds_of_loss = time.perf_counter() - start
    return Cost(
        samples=rounds * sum(blocks.sizes),
        steps=hyp.steps,
        evaluations=row["evaluations"],
        loss_evaluations=row["loss_evaluations"],
        validations=num_due(hyp.steps, planned.run.impl.validate_every_nth_step),
        validation_samples=len(planned.problem.data.valid) * (2 if hyp.test_time_flips else 1),
        flops=flops_of(objective, blocks),
        seconds_per_sample=seconds / sum(blocks[:_PROBED].sizes),
        seconds_per_loss=seconds_of_loss / sum(blocks[:1].sizes),
    )


def _work(planned: PlannedStep, cost: Cost, rounds: int) -> Iterator[tuple[str, str]]:
    hyp, sizes = planned.run.hyp, planned.blocks.sizes
    passes = rounds * sum(max(size // hyp.sub_batch, 1) for size in sizes)
    updates = math.ceil(rounds * len(sizes) / hyp.blocks_per_update) if planned.stochastic else 1
    mode = "stochastic" if planned.stochastic else "full batch"
    losses = f", {cost.loss_evaluations:g} losses" if cost.loss_evaluations else ""
    step, total = cost.flops_per_step, f"{cost.steps * cost.evaluations:,.10g}"
    yield "samples", f"{cost.samples:,} in {rounds * len(sizes):,} blocks, {passes:,} sub-batches"
    yield "one step", f"{mode}: {updates:,} updates, {cost.evaluations:g} gradient evaluations{losses}"
    yield "the run", f"{cost.steps:,} steps, {total} evaluations, {cost.validations:,} validations"
    yield "operations", f"{_tera(step)} TFLOP per step, {_tera(step * cost.steps)} TFLOP in total"


def _memory(planned: PlannedStep, rounds: int) -> Iterator[tuple[str, str]]:
    model, device = planned.problem.model, device_of(planned.problem.model)
    state = num_bytes(planned.problem.optimizer.state) + planned.run.hyp.evaluate_ema * num_bytes(
        list(model.parameters())
    )
    images = rounds * sum(planned.blocks.sizes) * planned.problem.data.channels * planned.problem.data.pixels**2
    evaluate = planned.problem.objective.over(planned.blocks[:1]).evaluate
    held = peak_bytes(device)
    yield "model", f"{_mib(num_bytes(model.state_dict()))}, optimizer and average of the weights {_mib(state)}"
    yield "one evaluation", f"{_mib(peak_of(evaluate, device))} more"
    yield "images", f"{_mib(images)} if they are cached (data.caching)"
    if held is not None:
        yield "peak so far", f"{_mib(held)} of {'the device' if device.type == 'cuda' else 'the process'}"


def _time(planned: PlannedStep, cost: Cost) -> Iterator[tuple[str, str]]:
    peak = matmul_peak(planned.problem.device, planned.problem.arithmetic.matmul_dtype)
    rate = cost.evaluations / cost.seconds_per_sample
    yield "speed", f"{rate:,.0f} gradients of samples per second; {cost.rate / peak:.0%} of {_tera(peak)} TFLOP/s"
    yield (
        "one step takes",
        f"{_duration(cost.seconds_per_step)}, one validation {_duration(cost.seconds_per_validation)}",
    )
    yield "the run takes", _duration(cost.seconds)


def _mib(number: int) -> str:
    return f"{number / (1 << 20):,.1f} MiB"


def _tera(number: float) -> str:
    return f"{number / 1e12:,.0f}" if number >= 1e14 else f"{number / 1e12:.3g}"


def _duration(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
