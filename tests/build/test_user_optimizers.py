"""Optimizers of torch.optim, of another package and of the user: equal to a loop by hand, and resumed bitwise."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import settings_for
from fixed_blocks import FixedBlocks
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.build.optimizer import OF_TORCH, build_optimizer
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.training.state import TrainState
from fullbatch.training.step import Step
from fullbatch.training.trainer import Trainer, TrainingPlan, set_learning_rates
from fullbatch.typing import Block

STEPS = 5
MATRICES = ("Muon",)
"""Optimizers that take nothing but matrices."""
SPARSE = ("SparseAdam",)
SENSITIVE = ("SOAP",)
"""Rotates gradients into eigenvectors, of which those of a zero eigenvalue depend on the last bit: one block of 16."""
OTHERS = ("SOAP", "Lion", "ScheduleFreeAdamW", "ScheduleFreeSGD", "Prodigy")


class Halving(Optimizer):
    """Calls its closure after each trial step and halves the step until the loss decreases."""

    def __init__(self, params: Any, start: float = 64.0) -> None:
        super().__init__(params, {"start": start})

    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        with torch.enable_grad():
            first = closure()
        parameters = [p for group in self.param_groups for p in group["params"]]
        point, gradients = [p.detach().clone() for p in parameters], [p.grad.clone() for p in parameters]
        size = self.param_groups[0]["start"]
        while size > 1e-6:
            with torch.no_grad():
                for p, x, g in zip(parameters, point, gradients, strict=True):
                    p.copy_(x - size * g)
            with torch.enable_grad():
                if closure() < first:
                    break
            size /= 2
        self.state[parameters[0]]["size"] = size
        return first


class WithoutClosure(Optimizer):
    """Has a ``step`` without arguments."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * p.grad.sign())


class Forgetful(Optimizer):
    """Takes a closure and never calls it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        """Do nothing."""


class Crashing(Forgetful):
    """Fails in its step."""

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        raise RuntimeError("out of ideas")


def not_an_optimizer(params: Any) -> int:
    return 3


def problem(name: str = "") -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    bias, samples = name not in MATRICES, 16 if name in SENSITIVE else 23
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8, bias=bias), nn.Tanh(), nn.Linear(8, 4, bias=bias)).double()
    return model, torch.randn(samples, 3, 2, 2, dtype=torch.float64), torch.randint(4, (samples,))


def overrides_of(name: str) -> list[str]:
    if name.lower() in OF_TORCH:
        return ["hyp/optim=torch", f"hyp.optim.name={name}"]
    module = "pytorch_optimizer" if name in OTHERS else __name__
    return ["hyp/optim=import", f"hyp.optim.target={module}:{name}"]


def built(name: str, model: nn.Module, *more: str) -> Optimizer:
    return build_optimizer(settings_for("hyp=fb1", *overrides_of(name), *more).hyp, model)


class Run:
    """Steps over three uneven blocks, as a trainer takes them."""

    def __init__(self, name: str, *more: str) -> None:
        self.model, self.inputs, self.labels = problem(name)
        self.state = TrainState(self.model, built(name, self.model, *more))
        size, sub_batch = (16, 16) if name in SENSITIVE else (9, 4)
        parts = zip(self.inputs.split(size), self.labels.split(size), strict=True)
        blocks = [Block(*pair, key) for key, pair in enumerate(parts)]
        objective = FullBatchObjective(self.model, nn.CrossEntropyLoss(), [], sub_batch=sub_batch)
        self.step = Step(self.state, objective, FixedBlocks(blocks))

    def take(self, steps: range) -> None:
        for number in steps:
            self.state.train()
            self.state.begin_step()
            set_learning_rates(self.state.optimizer, 1 - number / 10)
            self.state.rows.append({"step": number + 1, **self.step(number, stochastic=False)})
            self.state.end_step()
            with self.state.evaluated() as model:  # leaves no trace
                model(self.inputs)


def by_hand(name: str) -> list[Tensor]:
    """Return the parameters after a usual loop over all the data at once."""
    model, inputs, labels = problem(name)
    optimizer = built(name, model)
    getattr(optimizer, "train", lambda: None)()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        return loss

    for number in range(STEPS):
        set_learning_rates(optimizer, 1 - number / 10)
        if isinstance(optimizer, WithoutClosure):
            closure()
            optimizer.step()
        else:
            optimizer.step(closure)
    return list(model.parameters())


NAMES = [value.__name__ for value in OF_TORCH.values()]


@pytest.mark.parametrize("name", [*sorted(set(NAMES) - {*SPARSE}), *OTHERS, "Halving", "WithoutClosure"])
def test_every_optimizer_equals_a_loop_by_hand_and_resumes_bitwise(name: str, tmp_path: Path) -> None:
    whole = Run(name)
    whole.take(range(STEPS))
    for ours, theirs in zip(whole.model.parameters(), by_hand(name), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=1e-10)
    first = Run(name)
    first.take(range(2))
    torch.save(first.state.state_dict(), tmp_path / "state.pth")
    continued = Run(name)
    continued.state.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    continued.take(range(2, STEPS))
    for one, other in zip(whole.model.parameters(), continued.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert continued.state.rows == whole.state.rows


def test_an_optimizer_that_averages_is_set_to_training_in_a_wrapper_and_in_stochastic_steps() -> None:
    run = Run("ScheduleFreeSGD", "hyp/optim_modification=SAM")
    plan = TrainingPlan(3, schedule=lambda step: 1.0, stochastic=lambda step: True)
    Trainer(run.state, run.step, plan, validate=lambda model, step: run.step.objective_at(step).loss()).run()
    assert run.state.optimizer.param_groups[0]["train_mode"]
    with run.state.evaluated() as model:
        average = [p.detach().clone() for p in model.parameters()]
    assert not all(map(torch.equal, average, run.model.parameters()))


def test_an_optimizer_that_averages_is_evaluated_and_stored_with_its_average() -> None:
    run = Run("ScheduleFreeSGD")
    run.take(range(STEPS))
    reference = copy.deepcopy(run.state.optimizer)
    before = [p.detach().clone() for p in run.model.parameters()]
    with run.state.evaluated() as model:
        average = [p.detach().clone() for p in model.parameters()]
    assert all(map(torch.equal, before, run.model.parameters()))
    assert not all(map(torch.equal, before, average))
    stored = run.state.state_dict()
    assert all(map(torch.equal, stored["ema"].values(), average))
    assert all(map(torch.equal, stored["model"].values(), before))
    assert reference.state_dict()["param_groups"] == run.state.optimizer.state_dict()["param_groups"]


@pytest.mark.parametrize(
    ("overrides", "fragments"),
    [
        (["hyp/optim=torch", "hyp.optim.name=RMSprob"], ["hyp.optim.name=RMSprob", "known", "RMSprop"]),
        (["hyp/optim=torch", "hyp.optim.name=RMSprop", "hyp.optim.args={alhpa: 1}"], ["alhpa", "accepted", "alpha"]),
        (["hyp/optim=torch", "hyp.optim.name=Adagrad", "hyp.optim.momentum=0.9"], ["momentum", "accepted", "lr_decay"]),
        (["hyp/optim=torch", "hyp.optim.name=SGD", "hyp.optim.lr=0.1", "hyp.optim.args={lr: 1}"], ["lr", "also"]),
        (["hyp/optim=torch", "hyp.optim.name=Adam", "hyp.optim.args={betas: [2, 3]}"], ["hyp.optim", "beta"]),
        (["hyp/optim=torch", "hyp.optim.name=Muon"], ["Muon", "2D"]),
        (["hyp/optim=import", "hyp.optim.target=nowhere:Thing"], ["hyp.optim.target=nowhere:Thing", "nowhere"]),
        (["hyp/optim=import", "hyp.optim.target=nowhere"], ["package.module:callable"]),
        (["hyp/optim=import", f"hyp.optim.target={__name__}:Halfing"], ["Halfing", "did you mean Halving"]),
        (["hyp/optim=import", f"hyp.optim.target={__name__}:not_an_optimizer"], ["returned int", "Optimizer"]),
        (["hyp/optim=import", f"hyp.optim.target={__name__}:Halving", "hyp.optim.args={begin: 1}"], ["begin", "start"]),
    ],
)
def test_a_mistake_in_an_optimizer_is_one_line(overrides: list[str], fragments: list[str]) -> None:
    model, _, _ = problem()
    with pytest.raises(ValueError, match=r"hyp\.optim") as caught:
        build_optimizer(settings_for("hyp=fb1", *overrides).hyp, model)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SparseAdam", "SparseAdam.step failed: RuntimeError: SparseAdam does not support dense gradients"),
        ("Forgetful", "Forgetful.step did not call its closure"),
        ("Crashing", r"Crashing.step failed: RuntimeError: out of ideas \(.*test_user_optimizers.py:\d+, in step"),
    ],
)
def test_an_optimizer_that_fails_names_itself(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(name).take(range(1))


def test_an_error_of_the_objective_is_not_blamed_on_the_optimizer() -> None:
    run = Run("RMSprop")

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        raise ZeroDivisionError

    run.step.objective = FullBatchObjective(run.model, loss, [])
    with pytest.raises(ZeroDivisionError):
        run.take(range(1))


def test_the_user_code_lies_in_the_launch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import torch\n\ndef mine(params):\n    return torch.optim.SGD(params, lr=0.5)\n"
    (tmp_path / "my_optimizer.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    search_path = list(sys.path)
    hyp = settings_for("hyp=fb1", "hyp/optim=import", "hyp.optim.target=my_optimizer:mine").hyp
    assert build_optimizer(hyp, problem()[0]).param_groups[0]["lr"] == 0.5
    assert sys.path == search_path
