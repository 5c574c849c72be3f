"""How many processes share a run is invisible: loss, gradient and trajectory are those of one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import tree_for
from shared_runs import STOPS, continued, distance, tasks, together

from fullbatch.runtime.process_group import ALONE

BASE = (
    "data=digits data.size=28 data.valid_size=20 data.batch_size=8 hyp=fb1 "
    "hyp.steps=3 hyp.warmup=1 hyp.sub_batch=4 impl.dtype=double impl.accumulation_dtype=double impl.device=cpu "
    "impl.threads=1 impl.validate_every_nth_step=2"
).split()
CASES = {
    "plain": "",
    "two blocks": "data.batch_size=32",
    "shuffled": "hyp.shuffle=True hyp.label_smoothing=0.1",
    "regularized": "hyp=gradreg hyp.warmup=1 hyp.steps=3",
    "regularized by gbar": "hyp.grad_reg.block_strength=0.5 hyp.grad_reg.acc_strength=0.25",
    "regularized, autograd": "hyp.grad_reg.block_strength=0.5 hyp.grad_reg.implementation=autograd",
    "transforms": "hyp.grad_clip=0.5 hyp.norm_bias.strength=0.01 hyp.grad_noise.additive=0.01 "
    "hyp.grad_noise.multiplicative=0.1 hyp.batch_clip=1.0",
    "SAM, gd_clip": "hyp/optim_modification=SAM hyp/optim=gd_clip",
    "ASAM, adam": "hyp/optim_modification=ASAM hyp/optim=adam",
    "LARS, gd_agc": "hyp/optim_modification=LARS hyp/optim=gd_agc",
    "L-BFGS": "hyp/optim=lbfgs hyp.warmup=0 hyp.scheduler=",
    "wolfe": "hyp.optim.line_search=wolfe hyp.optim.lr=1.0",
    "wolfe, constant": "hyp.optim.line_search=wolfe data.augmentations_train= model=linear",
    "non-monotone": "hyp.optim.line_search=non-monotone hyp.optim.lr=3.0",
    "restarting": "hyp.optim.line_search=restarting",
    "fista": "hyp/optim=fista",
    "maxup": "hyp.loss_modification=maxup-2",
    "other losses": "hyp.loss_modification=batch-maxup",
    "squared": "hyp.loss_modification=squared hyp.label_noise=0.2",
    "stochastic": "hyp=base_sgd hyp.steps=3 hyp.warmup=1 hyp.blocks_per_update=12 data.batch_size=2",
    "switching": "hyp.train_switch_stochastic=2 hyp.blocks_per_update=12 data.batch_size=2",
    "validation": "hyp.evaluate_ema=True hyp.test_time_flips=True hyp.recalibrate_batchnorm=True",
    "LMDB": "data/db=LMDB data.db.rounds=2 data.augmentations_train= data.db.temporary_database=True",
}
AGAIN = ("plain", "two blocks", "regularized", "regularized by gbar", "wolfe", "stochastic", "validation")
"""What three and four processes share, too."""
STOPPED = "data.batch_size=4 hyp.grad_reg.block_strength=0.5 hyp.grad_reg.acc_strength=0.25 hyp.steps=4"


def tree(overrides: str) -> dict[str, Any]:
    model = [] if "model=" in overrides else ["model=import", "model.target=shared_runs:smooth"]
    return tree_for(*BASE, *model, *overrides.split())


@pytest.fixture(scope="module")
def trees() -> dict[str, Any]:
    return {name: tree(overrides) for name, overrides in {**CASES, "stopped": STOPPED}.items()}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def alone(places: Path, trees: dict[str, Any]) -> dict[str, Any]:
    return {name: task(ALONE) for name, task in tasks(1, trees, places / "1", None).items()}


@pytest.fixture(scope="module", params=[2, 3, pytest.param(4, marks=pytest.mark.soak)])
def shared(
    request: pytest.FixtureRequest, places: Path, trees: dict[str, Any], alone: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The results of several processes; each number of them takes over from the one before, or from one."""
    size = request.param
    before = next(place for place in (places / str(size - 1), places / "1") if place.exists())
    if size > 2:
        trees = {name: trees[name] for name in (*AGAIN, "stopped")}
    with together(size, tasks, size, trees, places / str(size), before) as results:
        yield {"size": size, **results}


@pytest.mark.slow
@pytest.mark.distributed
def test_the_number_of_processes_is_invisible(shared: dict[str, Any], alone: dict[str, Any]) -> None:
    bounds = {"first": 1e-12, "rows": 1e-9, "tensors": 1e-9}
    distances = {
        (name, part): distance(shared[name][part], alone[name][part])
        for name in (CASES if shared["size"] == 2 else AGAIN)
        for part in bounds
    }
    assert {case: far for case, far in distances.items() if far > bounds[case[1]]} == {}
    assert shared["all equal"]


@pytest.mark.slow
@pytest.mark.distributed
def test_the_same_number_continues_bitwise_inside_a_step(shared: dict[str, Any]) -> None:
    uninterrupted = shared["uninterrupted"]
    for name in STOPS:
        result = shared[f"continued {name}"]
        assert result["rows"] == uninterrupted["rows"], name
        assert all(torch.equal(result["tensors"][key], value) for key, value in uninterrupted["tensors"].items()), name


@pytest.mark.slow
@pytest.mark.distributed
def test_another_number_continues_within_rounding(shared: dict[str, Any], alone: dict[str, Any]) -> None:
    for name in STOPS:
        result = shared[f"taken over {name}"]
        assert distance(result["rows"], alone["uninterrupted"]["rows"]) < 1e-9, name
        assert distance(result["tensors"], alone["uninterrupted"]["tensors"]) < 1e-9, name


@pytest.mark.slow
@pytest.mark.distributed
def test_one_process_takes_over_from_several(
    shared: dict[str, Any], alone: dict[str, Any], trees: dict[str, Any], places: Path
) -> None:
    for name in STOPS:
        result = continued(trees["stopped"], ALONE, places / str(shared["size"]) / name)
        assert distance(result["tensors"], alone["uninterrupted"]["tensors"]) < 1e-9, name


@pytest.mark.slow
def test_runs_are_not_the_same_for_another_reason(alone: dict[str, Any]) -> None:
    """Else the tests above would compare constants, or ignore what moves."""
    for name in CASES:
        rows, tensors = alone[name]["rows"], alone[name]["tensors"]
        assert rows[0]["train_loss"] != rows[-1]["train_loss"]
        if name not in ("wolfe, constant",):
            assert int(tensors["1.num_batches_tracked"]) > 0
            assert distance(tensors["1.running_mean"], torch.zeros(4)) > 0.1
    assert distance(alone["plain"]["rows"], alone["shuffled"]["rows"]) > 1e-3
