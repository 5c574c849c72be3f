"""The user's losses, gradient transformations, probes, models and initial weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from composing import settings_for, tree_for
from torch import Tensor, nn
from torch.nn import functional as F

from fullbatch.analysis.probes import Observation
from fullbatch.app.identity import RunIdentity
from fullbatch.build.probes import build_probes
from fullbatch.build.trainer import Training, build_training
from fullbatch.settings.parse import parse_tree

TINY = (
    *("data=digits", "data.size=60", "data.valid_size=40", "data.batch_size=20", "model=linear", "hyp=fb1"),
    *("hyp.steps=3", "hyp.warmup=0", "seed=1", "impl.device=cpu", "impl.threads=1", "impl.dtype=double"),
)


def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.multi_margin_loss(outputs, labels, reduction="none")


def scalar_loss(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels)


def loss_of_the_batch(outputs: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, labels, reduction="none")
    return losses / losses.max().detach()


def failing(*_: Any) -> None:
    raise KeyError("nothing here")


def halved(gradients: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    return [gradient / 2 for gradient in gradients]


def reversed_twice(gradients: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    return [gradient.flip(0).flip(0) for gradient in gradients]


def in_place(gradients: list[Tensor], parameters: list[Tensor]) -> None:
    gradients[0].zero_()


def too_few(gradients: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    return gradients[:1]


def moving(gradients: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    parameters[0].add_(1)
    return gradients


def largest_weight(observation: Observation) -> dict[str, float]:
    return {"largest_weight": max(float(p.detach().abs().max()) for p in observation.model.parameters())}


def drawing(observation: Observation) -> dict[str, Tensor]:
    return {"drawn": torch.randn(()), "loss_now": observation.objective.loss().loss}


def vandal(observation: Observation) -> dict[str, float]:
    next(observation.model.parameters()).data.mul_(2)
    return {}


def thief(observation: Observation) -> dict[str, float]:
    return {"train_loss": 0.0}


def late(observation: Observation) -> dict[str, float]:
    if observation.step == 2:
        raise RuntimeError("tired")
    return {"late": float(observation.step)}


def words(observation: Observation) -> dict[str, str]:
    return {"word": "many"}


def wide_network(channels: int, classes: int, width: int, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * 64, width, bias=bias), nn.ReLU(), nn.Linear(width, classes))


def trained(*overrides: str) -> Training:
    training = build_training(settings_for(*TINY, *overrides), seed=1)
    training.trainer(probes=build_probes(training, None)).run()
    return training


def target(function: Any) -> str:
    return f"{__name__}:{function.__name__}"


def test_the_loss_of_the_user_is_averaged_over_the_samples() -> None:
    training = trained(f"hyp.loss_target={target(hinge)}", "hyp.warmup=3")
    fresh = build_training(settings_for(*TINY), seed=1)
    blocks = list(fresh.problem.loader.blocks(0))
    inputs, labels = torch.cat([b.inputs for b in blocks]), torch.cat([b.labels for b in blocks])
    with torch.no_grad():
        expected = F.multi_margin_loss(fresh.state.model(inputs), labels)
    first = training.state.rows[0]
    assert first["train_loss"] == pytest.approx(float(expected), rel=1e-12)
    assert first["valid_loss"] > 0


def test_a_transformation_acts_after_the_others() -> None:
    halved_once = trained(f"hyp.transforms=[{target(halved)}]", "hyp.grad_clip=0.1")
    row = halved_once.state.rows[0]
    assert row["update_norm"] == pytest.approx(0.05, rel=1e-4)
    plain, same = trained(), trained(f"hyp.transforms={target(reversed_twice)}")
    assert all(map(torch.equal, plain.state.model.parameters(), same.state.model.parameters()))


def test_a_probe_measures_and_leaves_no_trace() -> None:
    targets = f"[{target(largest_weight)},{target(drawing)}]"
    measured = trained(f"analysis.probes={targets}", "analysis.check_every_nth_step=1")
    plain = trained()
    assert all(map(torch.equal, plain.state.model.parameters(), measured.state.model.parameters()))
    for row, other in zip(measured.state.rows, plain.state.rows, strict=True):
        assert {"largest_weight", "drawn", "loss_now"} == row.keys() - other.keys() - {"analysis_time"}
    largest = max(float(p.detach().abs().max()) for p in measured.state.model.parameters())
    assert measured.state.rows[-1]["largest_weight"] == largest


def test_a_probe_that_fails_later_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    training = trained(f"analysis.probes={target(late)}", "analysis.check_every_nth_step=1")
    assert [row.get("late") for row in training.state.rows] == [1.0, None, 3.0]
    assert "tired" in caplog.text
    assert "step 2: UserProbe: not measured" in caplog.text


MISTAKES: dict[str, tuple[str, list[str]]] = {
    "scalar loss": (f"hyp.loss_target={target(scalar_loss)}", ["returned ()", "20 losses", "reduction='none'"]),
    "loss of the batch": (f"hyp.loss_target={target(loss_of_the_batch)}", ["not a mean over samples"]),
    "failing loss": (f"hyp.loss_target={target(failing)}", ["failed: KeyError", "nothing here", "in failing"]),
    "unknown loss": ("hyp.loss_target=nowhere.at_all:f", ["hyp.loss_target=nowhere.at_all:f", "No module named"]),
    "loss without module": ("hyp.loss_target=hinge", ["package.module:callable"]),
    "no function": (f"hyp.loss_target={__name__}:TINY", ["not a callable but tuple"]),
    "in place": (f"hyp.transforms={target(in_place)}", ["returned NoneType", "the list of the 2 new gradients"]),
    "too few": (f"hyp.transforms={target(too_few)}", ["another number"]),
    "moving": (f"hyp.transforms={target(moving)}", ["changed the parameters"]),
    "failing transformation": (f"hyp.transforms={target(failing)}", ["hyp.transforms", "KeyError"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_the_code_of_the_user_is_one_line(case: str) -> None:
    override, fragments = MISTAKES[case]
    with pytest.raises(ValueError, match=r"\S") as caught:
        trained(override)
    assert "\n" not in str(caught.value)
    for fragment in fragments:
        assert fragment in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "other", ["hyp.label_smoothing=0.1", "hyp.test_time_flips=True", "hyp.loss_modification=Squared"]
)
def test_what_belongs_to_another_loss_is_refused(other: str) -> None:
    with pytest.raises(ValueError, match=f"{other.partition('=')[0]}.*belongs to another loss"):
        build_training(settings_for(*TINY, f"hyp.loss_target={target(hinge)}", other), seed=1)


def test_a_model_of_the_user_takes_arguments() -> None:
    model = build_training(
        settings_for(
            *TINY[:4],
            "model=import",
            f"model.target={target(wide_network)}",
            "model.args={width: 7, bias: False}",
            *TINY[5:],
        ),
        1,
    ).state.model
    assert [tuple(p.shape) for p in model.parameters()] == [(7, 64), (10, 7), (10,)]
    with pytest.raises(
        ValueError,
        match=r"model: target=.*wide_network\(\) takes no argument wdith; did you mean width; accepted: .*width",
    ):
        build_training(
            settings_for(
                *TINY[:4], "model=import", f"model.target={target(wide_network)}", "model.args={wdith: 7}", *TINY[5:]
            ),
            1,
        )


@pytest.mark.parametrize(
    ("overrides", "shapes"),
    [
        (["model=mlp", "model.width=5", "model.depth=1"], [(5, 64), (5,), (10, 5), (10,)]),
        (["model=cnn", "model.width=4"], [(4, 1, 3, 3), (4,), (4, 4, 3, 3), (4,), (10, 16), (10,)]),
    ],
)
def test_small_networks(overrides: list[str], shapes: list[tuple[int, ...]]) -> None:
    others = [line for line in TINY if not line.startswith("model")]
    model = build_training(settings_for(*others, *overrides), seed=1).state.model
    assert [tuple(p.shape) for p in model.parameters()] == shapes


def test_a_run_starts_from_the_weights_of_a_file(tmp_path: Path) -> None:
    weights = {name: torch.randn_like(value) for name, value in trained().state.model.state_dict().items()}
    torch.save(weights, tmp_path / "start.pth")
    model = build_training(settings_for(*TINY, f"model.weights={tmp_path / 'start.pth'}"), seed=1).state.model
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    torch.save({"other": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"model\.weights=.*other.pth: .*another model"):
        build_training(settings_for(*TINY, f"model.weights={tmp_path / 'other.pth'}"), seed=1)


def test_the_identity_of_a_run_belongs_to_the_content_of_the_weights(tmp_path: Path) -> None:
    def identity(*overrides: str) -> RunIdentity:
        tree = tree_for(*TINY, *overrides)
        return RunIdentity.of(parse_tree(tree), tree)

    for name, content in {"a": b"1", "b": b"1", "c": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    a, b, c = (identity(f"model.weights={tmp_path / name}") for name in "abc")
    assert a == b
    assert a.configuration != c.configuration
    assert c.mismatches({"config": a.config, "seed": 1})
    assert "weights" not in identity().config["model"]  # as earlier versions stored it
    with pytest.raises(FileNotFoundError):
        identity("model.weights=nowhere.pth")
