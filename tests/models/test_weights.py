"""Loading state dicts: which entries are accepted, and which names are those of a model."""

from collections.abc import Callable
from typing import Any

import odd_files
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fullbatch.models.weights import load_weights


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


STATE = model().state_dict()


@pytest.mark.filterwarnings("ignore:.*(quantize|nested)")
@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("0.weight", torch.Tensor.long, r"0\.weight: torch\.float32 here, torch\.int64 there"),
        ("0.weight", torch.Tensor.bool, r"0\.weight: torch\.float32 here, torch\.bool there"),
        ("0.weight", lambda t: t.to(torch.uint8), r"0\.weight: torch\.float32 here, torch\.uint8 there"),
        ("0.weight", lambda t: t.to(torch.uint16), r"0\.weight: torch\.float32 here, torch\.uint16 there"),
        ("0.weight", lambda t: t + 1j, r"0\.weight: torch\.float32 here, torch\.complex64 there"),
        (
            "1.num_batches_tracked",
            torch.Tensor.float,
            r"1\.num_batches_tracked: torch\.int64 here, torch\.float32 there",
        ),
        ("0.weight", torch.Tensor.to_sparse, r"the entry 0\.weight is a sparse tensor"),
        ("0.weight", lambda t: t.to("meta"), r"the entry 0\.weight is a meta tensor"),
        ("0.weight", lambda t: t.to(torch.float8_e5m2), r"the entry 0\.weight is of torch\.float8_e5m2"),
        ("0.weight", lambda t: t.as_subclass(odd_files.Sub), r"the entry 0\.weight is a tensor of the class Sub"),
        ("0.weight", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "a quantized tensor"),
        ("0.weight", lambda t: torch.nested.nested_tensor([t, t]), "a nested tensor"),
        ("0.weight", lambda t: t.double() * 1e300 + 1e300, r"1 entries of the weights are not finite \(0\.weight\)"),
        ("1.running_var", lambda t: t * torch.nan, r"1 entries of the weights are not finite \(1\.running_var\)"),
        ("0.weight", Tensor.tolist, r"no state dict: the entry 0\.weight is of type list"),
        (3, lambda t: torch.zeros(1), "no state dict: the name of the entry 3 is of type int"),
    ],
)
def test_entries_that_would_be_changed_are_refused(entry: Any, change: Callable[[Tensor], Any], message: str) -> None:
    target = model()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_weights(target, {**STATE, entry: change(STATE.get(entry, torch.zeros(1)))})
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_is_that_of_the_model(dtype: torch.dtype) -> None:
    for own in (torch.float32, torch.float64):
        target = model().to(own)
        stored = {n: t.to(dtype) if t.is_floating_point() else t.to(torch.int32) for n, t in STATE.items()}
        load_weights(target, stored)
        for name, tensor in target.state_dict().items():
            assert torch.equal(tensor, stored[name].to(tensor.dtype))


def wrapped(place: str) -> dict[str, Tensor]:
    """Return the state dict with ``place`` around each name, which it contains as {} or, in two parts, {0} and {1}."""
    return {place.format(name, *name.split(".", 1)): tensor for name, tensor in STATE.items()}


@pytest.mark.parametrize(
    "place",
    [
        *("module.{}", "model.{}", "net.{}", "_orig_mod.{}", "_fsdp_wrapped_module.{}", "module._orig_mod.model.{}"),
        *("{1}._orig_mod.{2}", "_fsdp_wrapped_module.model.{1}._fsdp_wrapped_module._checkpoint_wrapped_module.{2}"),
        "a.b.c.{}",
    ],
)
def test_what_wrappers_add_to_names_is_removed(place: str) -> None:
    target = model()
    load_weights(target, wrapped(place))
    assert all(torch.equal(tensor, STATE[name]) for name, tensor in target.state_dict().items())


def test_weights_are_loaded_into_wrapped_models() -> None:
    for name in ("module", "_orig_mod"):
        target = nn.ModuleDict({name: model()})
        load_weights(target, wrapped("model.{}"))
        assert torch.equal(target[name][0].weight, STATE["0.weight"])


def test_weights_of_an_averaged_model_are_loaded_into_one() -> None:
    averaged = AveragedModel(model())
    averaged.update_parameters(model())
    other = AveragedModel(model())
    load_weights(other, averaged.state_dict())
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in averaged.state_dict().items())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            wrapped("model.{}") | {"model.2.bias": torch.zeros(2)},
            r"1 entries differ \(2\.bias: absent here, \(2,\) there\)",
        ),
        (
            wrapped("model.{}") | {"loss.weight": torch.ones(2)},
            r"1 entries differ \(loss\.weight: absent here, \(2,\) the",
        ),
        (STATE | wrapped("module.{}"), r"7 entries differ"),  # not clear which
        ({"w" * 10**4: torch.zeros(1)}, r"8 entries differ \(0\.weight: \(2, 3\) here, absent there; "),
    ],
)
def test_other_names_are_listed_as_they_would_be_in_the_model(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match="the weights are those of another model: " + message) as caught:
        load_weights(model(), state)
    assert len(str(caught.value)) < 500


class Counted(nn.Linear):
    """Stores a number beside its tensors."""

    number = 3

    def get_extra_state(self) -> Any:
        return {"number": self.number}

    def set_extra_state(self, state: Any) -> None:
        self.number = state["number"]


def test_the_extra_state_of_a_module_is_loaded() -> None:
    source, target = nn.Sequential(Counted(2, 2)), nn.Sequential(Counted(2, 2))
    source[0].number = 7
    load_weights(target, source.state_dict())
    assert target[0].number == 7
