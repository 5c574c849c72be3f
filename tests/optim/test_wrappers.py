"""LARS, LARC, SAM and ASAM follow their formulas step by step."""

import math

import pytest
import torch
from optimization import Counted, rosenbrock
from torch import Tensor, nn
from torch.optim import Optimizer

from fullbatch.optim.descent import Descent
from fullbatch.optim.fista import FISTA
from fullbatch.optim.lars import LARS
from fullbatch.optim.line_search import NonMonotone
from fullbatch.optim.sam import ASAM, SAM
from fullbatch.optim.wolfe import Wolfe

SHAPES = [(4, 3), (5,), (2,)]
TRUST, EPS, DECAY, LR = 0.02, 1e-8, 0.1, 0.3


def tensors(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def scaled(g: Tensor, p: Tensor, lr: float, clip: bool) -> Tensor:
    if float(g.norm()) == 0 or float(p.norm()) == 0:
        return g
    q = TRUST * float(p.norm()) / (float(g.norm()) + DECAY * float(p.norm()) + EPS)
    return (g + DECAY * p) * (min(q / lr, 1) if clip else q)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("lr", [LR, 1e-4])
def test_lars_and_larc_follow_their_formula(clip: bool, lr: float) -> None:
    parameters = [nn.Parameter(t) for t in tensors(0)]
    with torch.no_grad():
        parameters[2].zero_()  # is not scaled and moves by its gradient
    copies = [p.detach().clone() for p in parameters]
    base = Descent(parameters, lr, 0.9, weight_decay=DECAY)
    optimizer, momenta = LARS(base, TRUST, EPS, clip=clip), [torch.zeros_like(c) for c in copies]
    for step in range(4):
        gradients = tensors(1 + step)
        gradients[1] *= step != 2  # a gradient of 0: no decay either

        def closure(gradients: list[Tensor] = gradients) -> Tensor:
            assert optimizer.param_groups[0]["weight_decay"] == DECAY  # the full loss has its decay
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            return torch.tensor(7.0)

        assert float(optimizer.step(closure)) == 7
        assert optimizer.param_groups[0]["weight_decay"] == DECAY
        for i, (copy, gradient) in enumerate(zip(copies, gradients, strict=True)):
            momenta[i] = 0.9 * momenta[i] + scaled(gradient, copy, lr, clip)
            copies[i] = copy - lr * momenta[i]
    for parameter, copy in zip(parameters, copies, strict=True):
        torch.testing.assert_close(parameter.detach(), copy, rtol=1e-12, atol=1e-14)


def test_larc_has_no_rate_to_clip_at_learning_rate_0() -> None:
    parameter = nn.Parameter(tensors(0)[0])
    optimizer = LARS(Descent([parameter], 0.0), clip=True)
    before = parameter.detach().clone()
    optimizer.step(Counted(lambda x: x.square().sum(), parameter, optimizer))
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("search", [Wolfe(), NonMonotone()])
def test_a_line_search_inside_lars_evaluates_the_loss_with_its_decay(search: Wolfe) -> None:
    parameter = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = LARS(Descent([parameter], 1.0, weight_decay=5.0, step_rule=search), trust_coefficient=0.1)
    closure = Counted(rosenbrock, parameter, optimizer)
    losses = [float(optimizer.step(closure)) for _ in range(15)]
    assert losses[0] == pytest.approx(float(rosenbrock(torch.tensor([-1.2, 1.0]))) + 2.5 * (1.2**2 + 1))
    assert losses[-1] < 0.5 * losses[0]
    assert optimizer.statistics["search_failed"] == 0
    wrapped = optimizer.wrap(closure)
    with optimizer.decays([0.0]):  # as the base sees it
        decayed = float(rosenbrock(parameter.detach()) + 2.5 * parameter.detach().square().sum())
        assert float(wrapped.loss()) == pytest.approx(decayed)
        assert float(wrapped.evaluate().loss) == pytest.approx(decayed)


def gradient_at(x: Tensor) -> Tensor:
    point = x.clone().requires_grad_()
    return torch.autograd.grad(rosenbrock(point), point)[0]


def perturbed(kind: type[SAM], x: Tensor, g: Tensor) -> Tensor:
    if kind is SAM:
        return x + 0.05 * g / g.norm()
    units = x.abs() + 0.01
    return x + 0.5 * units**2 * g / (units * g).norm()


@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize("base", ["descent", "adam", "fista"])
def test_sam_and_asam_follow_their_formula(kind: type[SAM], base: str) -> None:
    start = torch.tensor([-1.2, 1.0], dtype=torch.float64)

    def built(parameter: nn.Parameter) -> Optimizer:
        return {
            "descent": lambda: Descent([parameter], 1e-3, 0.9, weight_decay=0.1, nesterov=True),
            "adam": lambda: torch.optim.AdamW([parameter], 0.02),
            "fista": lambda: FISTA([parameter], 1e-3),
        }[base]()

    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    optimizer, reference = kind(built(ours)), built(theirs)
    closure = Counted(rosenbrock, ours, optimizer)
    for step in range(1, 6):
        before = ours.detach().clone()
        loss = optimizer.step(closure)
        assert closure.num_gradients == 2 * step

        def set_gradient(theirs: nn.Parameter = theirs) -> Tensor:
            theirs.grad = gradient_at(perturbed(kind, theirs.detach(), gradient_at(theirs.detach())))
            return torch.zeros(())

        reference.step(set_gradient)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        decay = 0.05 if base == "descent" else 0.005 if base == "adam" else 0.0
        assert float(loss) == pytest.approx(float(rosenbrock(before) + decay * before.square().sum()))


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_parameters_are_restored_bitwise_before_the_base_moves(kind: type[SAM]) -> None:
    parameter = nn.Parameter(torch.tensor([0.1, -1e20, math.pi], dtype=torch.float32))
    before = parameter.detach().clone()
    optimizer = kind(Descent([parameter], 0.0), rho=1e3)
    points = []

    def function(x: Tensor) -> Tensor:
        points.append(x.detach().clone())
        return (x / x.detach().abs().clamp(min=1)).square().sum()

    optimizer.step(Counted(function, parameter, optimizer))
    assert not torch.equal(*points)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_a_gradient_of_0_perturbs_nothing(kind: type[SAM]) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    kind(Descent([parameter], 0.1)).step(Counted(lambda x: x.square().sum(), parameter, Descent([parameter], 0.1)))
    assert torch.equal(parameter, torch.zeros(3))


def test_asam_does_not_depend_on_the_scale_of_the_parameters() -> None:
    """For eta = 0 rescaling the weights without changing the function does not change the perturbed values."""
    x = torch.tensor([2.0, 3.0], dtype=torch.float64)
    values: list[list[float]] = []
    for scale in (1.0, 4.0):
        parameter = nn.Parameter(x * torch.tensor([scale, 1 / scale], dtype=torch.float64))
        optimizer = ASAM(Descent([parameter], 0.0), eta=0.0)
        values.append([])

        def function(w: Tensor, values: list[float] = values[-1]) -> Tensor:
            value = torch.sin(w[0] * w[1]) + w[0] * w[1]
            values.append(float(value.detach()))
            return value

        optimizer.step(Counted(function, parameter, optimizer))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_a_line_search_inside_sam_is_refused() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = SAM(Descent([parameter], 0.1, step_rule=Wolfe()))
    with pytest.raises(ValueError, match="SAM: not with a line search"):
        optimizer.step(Counted(rosenbrock, parameter, optimizer))


@pytest.mark.parametrize("build", [LARS, SAM, ASAM])
def test_a_wrapper_shares_groups_and_state_before_and_after_loading(build) -> None:  # type: ignore[no-untyped-def]
    parameter = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    optimizer = build(Descent([parameter], 1e-3, 0.9))
    closure = Counted(rosenbrock, parameter, optimizer)
    optimizer.step(closure)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    assert optimizer.base.param_groups[0]["lr"] == 0
    before = parameter.detach().clone()
    optimizer.step(closure)
    assert torch.equal(parameter, before)
    assert optimizer.state[parameter].keys() == {"momentum_buffer"}
