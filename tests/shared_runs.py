"""Runs that several processes share, started once for many: the test's own process is the first of them."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from stop_requests import SignalAt
from torch import Tensor, multiprocessing, nn

from fullbatch.build.trainer import build_training
from fullbatch.runtime.process_group import Group, join_group
from fullbatch.runtime.ranks import Ranks
from fullbatch.runtime.rendezvous import PrivateRendezvous, private_rendezvous
from fullbatch.runtime.stop_requests import StopRequests
from fullbatch.settings.parse import parse_tree
from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint
from fullbatch.training.trainer import Trainer

Result = dict[str, Any]
Tree = dict[str, Any]


def smooth(*, channels: int, classes: int) -> nn.Module:
    """For images of 8x8: a small network without kinks, with everything that is awkward to share."""
    convolution = nn.Conv2d(channels, 4, 3, stride=2, padding=1, bias=False)  # a bias has no gradient but rounding
    layers = [convolution, nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, classes))


def built(tree: Tree, group: Group) -> Trainer:
    return build_training(parse_tree(tree), 1, group).trainer()


def outcome(trainer: Trainer) -> Result:
    state = trainer.state
    times = ("train_time", "valid_time")
    rows = [{key: value for key, value in row.items() if key not in times} for row in state.rows]
    with state.evaluated() as model:
        tensors = {**state.model.state_dict(), **{f"ema {k}": v for k, v in model.state_dict().items()}}
    return {"rows": rows, "tensors": {name: tensor.clone() for name, tensor in tensors.items()}}


def trained(tree: Tree, group: Group) -> Result:
    """Evaluate the objective of the first step, and take the steps."""
    trainer = built(tree, group)
    step = trainer.step
    trainer.state.model.train()
    blocks = step.data.blocks(0, shuffle=step.sampling.shuffle)
    first = step.objective.over(blocks, step.block_pass).evaluate()
    trainer.run()
    return {"first": [first.loss, *first.gradient], **outcome(trainer)}


def interrupted(tree: Tree, group: Group, rank: int, block: int, folder: Path) -> None:
    """Run until a process of a certain rank receives a signal, and save a checkpoint in the folder."""
    trainer = built(tree, group)
    caught = SignalAt(block if group.rank == rank else 10**9)
    requests = StopRequests(caught, group)
    trainer.request, trainer.step.block_pass.requests = requests.synchronize, caught.watching(requests)
    if group.is_main:
        trainer.save = lambda: save_checkpoint(folder / "x.pth", trainer.state.state_dict(), config={}, seed=0)
    trainer.run()
    assert not trainer.done
    assert requests.exit_status == 128 + 15


def continued(tree: Tree, group: Group, folder: Path) -> Result:
    """Continue from the checkpoint in the folder, to the end."""
    trainer = built(tree, group)
    trainer.state.load_state_dict(load_checkpoint(folder / "x.pth")["state"])
    assert trainer.state.inside is not None
    trainer.run()
    return outcome(trainer)


def all_equal(group: Group, result: Result) -> bool:
    """Whether all processes have the same bits."""
    tensors = [tensor.numpy().tobytes() for tensor in result["tensors"].values()]
    gathered = group.gather(b"".join([*tensors, str(result["rows"]).encode()]))
    return gathered is None or all(other == gathered[0] for other in gathered)


Task = Callable[[Group], Any]


STOPS = {"early": (0, 2), "by the last rank": (-1, 9), "in the second step": (0, 15)}
"""rank, and the block that it visits when the signal arrives; a regularized step of 14 blocks has 28 with gbar."""


def tasks(size: int, trees: dict[str, Tree], folder: Path, before: Path | None) -> dict[str, Task]:
    """What ``size`` processes do, and continue what the ones of ``before`` have begun."""
    stopped = trees["stopped"]
    run: dict[str, Task] = {name: partial(trained, some) for name, some in trees.items()}
    run["all equal"] = lambda group: all_equal(group, trained(trees["regularized"], group))
    run["uninterrupted"] = partial(trained, stopped)
    for name, (rank, block) in STOPS.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        run[f"stop {name}"] = partial(_stop, stopped, rank % size, block // size + 1, place)
        run[f"continued {name}"] = partial(_continue, stopped, place)
        if before is not None:
            run[f"taken over {name}"] = partial(_continue, stopped, before / name)
    return run


def _stop(stopped: dict[str, Any], rank: int, block: int, place: Path, group: Any) -> None:
    interrupted(stopped, group, rank, block, place)
    group.broadcast(b"")  # the file is there before the others read it


def _continue(stopped: dict[str, Any], place: Path, group: Any) -> Any:
    return continued(stopped, group, place)


def perform(todo: dict[str, Task], group: Group) -> dict[str, Any]:
    return {name: task(group) for name, task in todo.items()}


def _follow(ranks: Ranks, rendezvous: PrivateRendezvous, make_tasks: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        with join_group(ranks, rendezvous, backend="gloo") as group:
            perform(make_tasks(*arguments), group)
    except BaseException:
        traceback.print_exc()
        raise


@contextmanager
def together(size: int, make_tasks: Callable[..., dict[str, Task]], *arguments: Any) -> Iterator[dict[str, Any]]:
    """Let ``size`` processes perform the tasks one after the other; yield the results of the first process."""
    with private_rendezvous(size) as rendezvous:
        context = multiprocessing.get_context("spawn")
        others = []
        for rank in range(1, size):
            arguments_of_rank = (Ranks(rank, size), rendezvous[rank], make_tasks, arguments)
            others.append(context.Process(target=_follow, args=arguments_of_rank))
            others[-1].start()
            rendezvous[rank].close()
        try:
            with join_group(Ranks(0, size), rendezvous[0], backend="gloo") as group:
                yield perform(make_tasks(*arguments), group)
        finally:
            for process in others:
                process.join(60)
                process.kill()
    assert [process.exitcode for process in others] == [0] * (size - 1)


def distance(one: Any, other: Any) -> float:
    """The largest relative difference of two results, tensors and numbers; 0 for equal texts."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max((distance(one[key], other[key]) for key in one), default=0.0)
    if isinstance(one, list):
        assert len(one) == len(other)
        return max((distance(a, b) for a, b in zip(one, other, strict=True)), default=0.0)
    a, b = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    if torch.equal(a, b) or a.numel() == 0:
        return 0.0
    scale: Tensor = torch.maximum(a.abs().max(), b.abs().max())
    return float((a - b).abs().max() / scale)
