"""What an evaluation takes from the configuration in a checkpoint, and that nothing else in it has an effect."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_args

import pytest
from composing import tree_for

from fullbatch.settings.hyp import GradReg, Hyp
from fullbatch.settings.model import Model
from fullbatch.settings.optim import Optim, OptimModification
from fullbatch.settings.parse import flatten, parse_tree, replace_keys
from fullbatch.settings.stored import CHOICES, listed_keys, merge_stored

DEFAULT = tree_for()
COMPOSITIONS = {
    "default": [],
    "frozen": ["data/db=LMDB", "data.db.rounds=2"],
    "images": ["data=imagefolder", "data.path=p", "model=vgg11", "hyp=gradreg", "hyp/optim=lbfgs"],
    "library": ["data=digits", "model=torchvision", "model.name=vgg11", "hyp/optim=fista"],
    "wrapped": ["data=ImageNet", "model=nfn", "hyp/optim_modification=ASAM", "hyp/optim=gd_agc"],
}
EVALUATED = {
    *("name", "size", "valid_size", "subset_seed", "channels", "classes", "pixels", "normalize", "mean", "std"),
    *("batch_size", "drop_last", "augmentations_train", "augmentations_val", "resize_on_read"),
}
"""Keys of ``data`` that say which images are evaluated, and how they are prepared."""
FROZEN = {"rounds", "seed", "first_round_clean", "augmentations_train", "augmentations_val", "pixels", "mean"}
"""Keys of ``data.db`` that say how copies are made, which count where the command line chooses a database."""
NEVER = re.compile(
    r"path|mirror|rebuild|temporary|download|url|target|caching|logger|setup|^(impl|viz|analysis|base_dir)"
)
CODE = "builtins:exit"


def altered(value: Any, key: str) -> Any:
    """Return a hostile value of another kind or size."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return [9.5] if isinstance(value, list) else f"/hostile/{key}"


def hostile(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with another value for each key, except for the names that choose a group's keys."""
    names = {"model.name", "model.family", "data.db.name", "hyp.optim.name", "hyp.optim_modification.name"}
    names.add("hyp.loss_target")  # an error
    changes = {key: altered(value, key) for key, value in flatten(tree).items() if key not in names}
    return {**replace_keys(tree, changes), "hydra": {"run": {"dir": "/hostile"}}, "hyp.loss_target": CODE}


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("overrides", [["data/db=none"], ["data/db=LMDB"], ["data=digits", "model=linear", "hyp=fb1"]])
def test_no_other_key_of_a_checkpoint_has_an_effect(composition: str, overrides: list[str]) -> None:
    composed = tree_for(*overrides)
    before = flatten(composed)
    after = flatten(merge_stored(composed, hostile(tree_for(*COMPOSITIONS[composition])), overrides))
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert "data.mean" in changed
    assert {key for key in changed if NEVER.search(key) or key.split(".")[0] not in ("data", "model", "hyp")} == set()
    assert {key.split(".")[1] for key in changed if key.startswith("data.")} <= EVALUATED | {"db"}
    database = {key.split(".")[2] for key in changed if key.startswith("data.db.")}
    if "data/db=LMDB" in overrides:
        assert database <= (FROZEN if composition == "frozen" else {"pixels", "mean"})
    else:
        assert not database


def decided(union: Any) -> Iterator[tuple[str, set[str]]]:
    """Yield the tag of each dataclass of a group, and its keys."""
    for member in get_args(get_args(union)[0]):
        kind, tag = get_args(member)[:2]
        yield tag.tag, {field.name for field in fields(kind)}


def test_for_every_setting_it_is_decided_whether_it_is_taken() -> None:
    """A new family or key has to be listed, or added here."""
    not_taken: tuple[tuple[str, Any, set[str], set[str]], ...] = (
        ("model", Model, {"import"}, {"target", "args", "weights"}),
        ("hyp.optim", Optim, {"import"}, {"target"}),
        ("hyp.optim_modification", OptimModification, set(), set()),
    )
    for group, union, code, keys in not_taken:
        kinds = dict(decided(union))
        assert kinds.keys() - set(CHOICES[group].names) == code
        assert set().union(*kinds.values()) - set(CHOICES[group].keys) == keys
    training = {
        *("template_name", "shuffle", "sample_with_replacement", "train_stochastic", "train_switch_stochastic"),
        *("train_semi_stochastic", "steps", "scheduler", "stop_at_full_training_accuracy", "warmup", "grad_clip"),
        *("grad_noise", "norm_bias", "blocks_per_update", "max_evaluations", "transforms", "loss_target"),
    }
    listed = {key for key in listed_keys(DEFAULT) if key.startswith("hyp.")}
    assert {field.name for field in fields(Hyp)} == training | {key.split(".")[1] for key in listed}
    assert {f"hyp.grad_reg.{field.name}" for field in fields(GradReg)} <= listed


FAMILIES = ["resnet34", "densenet121", "vgg16", "pyramidnet110", "nfn", "linear"]


@pytest.mark.parametrize("model", FAMILIES)
def test_the_model_of_a_checkpoint_replaces_the_default_one(model: str) -> None:
    stored = tree_for("data=digits", f"model={model}", "hyp.label_smoothing=0.1", "hyp/optim=adam")
    run, own = parse_tree(merge_stored(DEFAULT, stored, ["impl.checkpoint.name=a"])), parse_tree(stored)
    assert (run.model, run.hyp.optim, run.hyp.label_smoothing) == (own.model, own.hyp.optim, 0.1)
    assert (run.data.name, run.data.channels, run.data.mean) == ("digits", 1, None)


def test_the_command_line_wins() -> None:
    overrides = ["hyp.test_time_flips=True", "model=linear", "hyp/optim=adam"]
    run = parse_tree(merge_stored(tree_for("data=digits", "hyp.steps=7", *overrides), DEFAULT, overrides))
    assert run.data.name == "CIFAR10"
    assert (run.model.name, run.hyp.optim.name, run.hyp.test_time_flips) == ("linear", "adam", True)
    stored = tree_for("model=resnet20", "model.convolution=circular")
    run = parse_tree(merge_stored(tree_for("model.width=4"), stored, ["model.width=4"]))
    assert run.model == parse_tree(tree_for("model=resnet20", "model.convolution=circular", "model.width=4")).model
    with pytest.raises(ValueError, match=r"^model\.width: no such key of the checkpoint's model, which is linear$"):
        merge_stored(tree_for("model.width=4"), tree_for("model=linear"), ["model.width=4"])


def test_other_data_are_normalized_as_the_model_was_trained() -> None:
    stored = replace_keys(tree_for("data=digits"), {"data.mean": [0.25], "data.std": [0.5], "data.normalize": False})
    overrides = ["data=imagefolder", "data.path=p", "data.valid_size=7"]
    data = merge_stored(tree_for(*overrides), stored, overrides)["data"]
    assert (data["mean"], data["std"], data["normalize"]) == ([0.25], [0.5], False)
    assert (data["name"], data["path"], data["valid_size"]) == ("imagefolder", "p", 7)
    assert (data["channels"], data["classes"], data["pixels"]) == (1, 10, 8)  # left blank there
    overrides = ["data=CIFAR100", "data.mean=[0.1,0.1,0.1]", "data.std=[1,1,1]"]
    data = merge_stored(tree_for(*overrides), stored, overrides)["data"]
    assert (data["mean"], data["std"], data["pixels"]) == ([0.1, 0.1, 0.1], [1, 1, 1], 32)


IMPORTED = tree_for("model=import", "model.target=my_net:build")


UNTYPED = {
    "import": (
        IMPORTED,
        "the checkpoint's model is my_net:build; to run this code, add model=import model.target=my_net",
    ),
    "escape": (replace_keys(IMPORTED, {"model.target": "\x1b[2J"}), r"add model=import model.target='\x1b[2J'"),
    "unknown": ({**DEFAULT, "model": {"name": "resnext"}}, "model=resnext: unknown; known: resnet, densenet"),
    "damaged": ({**DEFAULT, "model": "resnet18"}, "model=None: unknown; known: resnet"),
    "optimizer": ({"hyp": {"optim": {"name": "import", "target": "a:b"}}}, "add hyp/optim=import hyp.optim.target=a:b"),
    "loss": ({"hyp": {"loss_target": "a:b"}}, "the checkpoint needs the code a:b; to run it, add hyp.loss_target=a:b"),
    "database": (tree_for("data/db=LMDB"), "are frozen copies in a database; add data/db=LMDB"),
}


@pytest.mark.parametrize(("stored", "message"), UNTYPED.values(), ids=UNTYPED)
def test_what_only_the_command_line_can_name_is_shown(stored: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_stored(DEFAULT, stored, [])


def test_code_and_databases_that_are_typed_are_used() -> None:
    overrides = ["model=import", "model.target=my_net:build"]
    assert merge_stored(tree_for(*overrides), IMPORTED, overrides)["model"] == IMPORTED["model"]
    stored = tree_for("data=digits", "data/db=LMDB", "data.db.rounds=3", "data.db.path=theirs")
    database = merge_stored(tree_for("data/db=LMDB"), stored, ["data/db=LMDB"])["data"]["db"]
    assert (database["rounds"], database["path"], database["pixels"]) == (3, "~/data/lmdb", 8)
    assert merge_stored(DEFAULT, stored, ["data/db=none"])["data"]["db"] == {"name": "none"}
