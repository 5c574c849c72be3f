"""The configuration: documented defaults, blanks, case, and one clear line for each mistake."""

from collections.abc import Callable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from composing import CONFIG, composed, composed_tree, settings_for
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from fullbatch.app.argv import normalized
from fullbatch.settings import Run
from fullbatch.settings.parse import parse, parse_tree, replace_keys, to_tree


def test_the_documented_defaults() -> None:
    run = parse(composed())
    assert (run.base_dir, run.seed, run.dryrun, run.plan) == ("outputs", None, False, False)
    data = run.data
    assert (data.name, data.size, data.channels, data.classes, data.pixels) == ("CIFAR10", 50_000, 3, 10, 32)
    assert data.mean == (0.4914672374725342, 0.4822617471218109, 0.4467701315879822)
    assert data.std == (0.24703224003314972, 0.24348513782024384, 0.26158785820007324)
    assert (data.batch_size, data.augmentations_train) == (128, {"RandomCrop": [32, 4], "RandomHorizontalFlip": 0.5})
    assert (data.drop_last, data.download, data.subset_seed, data.normalize) == (False, True, 0, True)
    model: Any = run.model
    assert (model.name, model.depth, model.width, model.downsample, model.stem) == ("resnet", 18, 64, "C", "CIFAR")
    hyp, optim = run.hyp, run.hyp.optim
    assert (hyp.steps, hyp.train_stochastic, hyp.shuffle, hyp.scheduler, hyp.warmup) == (
        300,
        True,
        True,
        "cosine-decay",
        5,
    )
    assert (hyp.sub_batch, hyp.gradient_average, hyp.blocks_per_update, hyp.max_evaluations) == (128, "exact", 1, None)
    assert (hyp.grad_reg.eps, hyp.grad_reg.implementation, hyp.norm_bias.norm_type) == (1e-2, "forward-differences", 1)
    assert (optim.name, optim.lr, optim.weight_decay) == ("gd", 0.1, 5e-4)
    impl = run.impl
    assert (impl.dtype, impl.threads, impl.validate_every_nth_step, impl.checkpoint.keep) == ("float", "auto", 100, 1)


CROP_224 = {"RandomResizedCrop": 224, "RandomHorizontalFlip": 0.5}


@pytest.mark.parametrize(
    ("name", "shape", "train", "valid"),
    [
        ("CIFAR100", (50_000, 3, 100, 32), {"RandomCrop": [32, 4], "RandomHorizontalFlip": 0.5}, None),
        (
            "TinyImageNet",
            (100_000, 3, 200, 64),
            {"RandomCrop": [64, 8], "RandomHorizontalFlip": 0.5},
            {"CenterCrop": 64},
        ),
        ("ImageNet", (1_281_167, 3, 1000, 224), CROP_224, {"Resize": 256, "CenterCrop": 224}),
    ],
)
def test_other_data_sets(name: str, shape: tuple[int, ...], train: dict[str, Any], valid: dict[str, Any]) -> None:
    data = parse(composed(f"data={name.lower()}")).data
    assert (data.name, data.batch_size, data.normalize) == (name, 128, True)
    assert (data.size, data.channels, data.classes, data.pixels) == shape
    assert (data.augmentations_train, data.augmentations_val) == (train, valid)
    imagenet = name == "ImageNet"
    assert data.path == ("~/data/imagenet" if imagenet else "~/data")
    assert (data.caching, data.resize_on_read) == ((False, False) if imagenet else (None, None))
    if imagenet:
        assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    if name == "TinyImageNet":
        assert data.mean == (0.4789886474609375, 0.4457630515098572, 0.3944724500179291)
        assert data.std == (0.27698642015457153, 0.2690644860267639, 0.2820819020271301)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("base_sgd", ("baseline", True, True, 300, 0.1, "cosine-decay", 5, None, 0.0)),
        ("fb1", ("fb1", False, False, 300, 0.1, "cosine-decay", 5, None, 0.0)),
        ("fb2", ("fb2", False, False, 3000, 0.4, "cosine-4000", 400, None, 0.0)),
        ("fbclip", ("fbclip", False, False, 3000, 0.4, "cosine-4000", 400, 0.25, 0.0)),
        ("gradreg", ("fbgradreg", False, False, 3000, 0.8, "cosine-4000", 400, 0.25, 0.5)),
        ("_default_hyperparams", ("default", True, False, 120, 0.1, "cosine-decay", 5, None, 0.0)),
    ],
)
def test_templates(template: str, expected: tuple[object, ...]) -> None:
    hyp = parse(composed(f"hyp={template}")).hyp
    values = (hyp.template_name, hyp.train_stochastic, hyp.shuffle, hyp.steps, hyp.optim.lr, hyp.scheduler, hyp.warmup)
    assert (*values, hyp.grad_clip, hyp.grad_reg.block_strength) == expected


def test_the_template_keeps_its_learning_rate_with_another_optimizer() -> None:
    optim = parse(composed("hyp=gradreg", "hyp/optim=adam")).hyp.optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("adam", 0.8, 0.01)


def test_blanks_mean_none() -> None:
    run = parse(composed("data.augmentations_train=", "hyp.scheduler=", "data.mean=", "data.std=", "seed="))
    assert (run.data.augmentations_train, run.hyp.scheduler, run.data.mean, run.seed) == (None, None, None, None)


def test_names_are_case_insensitive() -> None:
    assert normalized(["data=cifar10", "HYP=FB1", "hyp/optim=ADAM", "-m", "data=cifar10,DIGITS"], CONFIG) == [
        "data=CIFAR10",
        "HYP=FB1",
        "hyp/optim=adam",
        "data=CIFAR10,digits",
        "-m",
    ]
    run = parse(composed("data=DIGITS", "model=ResNet18", "impl.memory=Channels_Last", "hyp.grad_clip_norm=INF"))
    assert (run.data.name, run.impl.memory, run.hyp.grad_clip_norm) == ("digits", "channels_last", "inf")


def test_a_tilde_is_the_home_folder() -> None:
    home = str(Path.home())
    assert normalized(["data.path=~/images", "name=a~/b", "~hyp.steps", "-m"], CONFIG) == [
        f"data.path={home}/images",
        "name='a~/b'",
        "~hyp.steps",
        "-m",
    ]


TEXTS = {
    "name=1e3": "1e3",
    "name=007": "007",
    "name=null": "null",
    "name=true": "true",
    "name=it's (2) #3": "it's (2) #3",
    "name=a b": "a b",
    "name='a,b'": "a,b",
    "name=x[gn]": "x[gn]",
    "name=x$$": "x$$",
    "name=${data.name}": "CIFAR10",
    "data.path=null": None,
    "data.path=/tmp/画像": "/tmp/画像",
    "data.path=/tmp/a#b": "/tmp/a#b",
    "data.path=~/é": "/home/é/é",
    "data.mirrors=[~/a,/tmp/b (2),3]": ["/home/é/a", "/tmp/b (2)", "3"],
    "impl.checkpoint.name=2024": "2024",
}


def test_text_is_taken_as_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/é")
    for line, value in TEXTS.items():
        key = line.partition("=")[0]
        assert attrgetter(key)(parse(composed(line))) == value, line


def test_text_in_files_is_as_exact() -> None:
    run = parse_tree(replace_keys(TREE, {"name": 2024}))
    assert run.name == "2024"
    for value in (1e3, True):  # perhaps 1000.0 and yes in the file
        with pytest.raises(ValueError, match="name: should be text, in a file with quotes"):
            parse_tree(replace_keys(TREE, {"name": value}))


def test_options_may_stand_anywhere() -> None:
    line = ["--config-name", "cfg", "seed=1,2", "-m", "-cd", "a=b", "hyp=glob(fb*)"]
    assert normalized(line, CONFIG) == ["seed=1,2", "hyp=glob(fb*)", "--config-name", "cfg", "-m", "-cd", "a=b"]


def test_a_table_of_augmentations_replaces_the_other() -> None:
    run = parse(composed("data.augmentations_train={RandomRotation: 10}", "data.augmentations_val={CenterCrop: 6}"))
    assert (run.data.augmentations_train, run.data.augmentations_val) == ({"RandomRotation": 10}, {"CenterCrop": 6})
    more = parse(composed("+data.augmentations_train.RandomErasing=0.5", "~data.augmentations_train.RandomCrop"))
    assert more.data.augmentations_train == {"RandomHorizontalFlip": 0.5, "RandomErasing": 0.5}


MISTAKES = {
    "hyp.steps=many": r"hyp\.steps: .*valid integer.*'many'",
    "hyp.steps=1e20": r"hyp\.steps: should be below 2\^31 \(got 1e\+20\)",
    "hyp.steps=#": r"hyp\.steps: .*valid integer.*'#'",
    "viz.map_size=1e30": r"viz\.map_size: should be below 2\^63",
    "impl.checkpoint.keep=20000": r"impl\.checkpoint\.keep: .*less than or equal to 10000",
    "impl.device=meta": r"impl\.device: should be auto, cpu, cuda.* \(got 'meta'\)",
    "model=import model.target=.:y": r"model\.target: should be package\.module:callable",
    "model=import model.target=a:": r"model\.target: should be package\.module:callable",
    "model=import model.target=a.b": r"model\.target: should be package\.module:callable",
    "data.augmentations_train={1:2}": r"data\.augmentations_train\.1.*valid string",
    "name=\udcff": r"name: should be text in UTF-8",
    "hyp.steps=0": r"hyp\.steps: .*greater than or equal to 1 \(got 0\)",
    "hyp.steps=": r"hyp\.steps: .*got a blank",
    "hyp.steps=True": r"hyp\.steps: should be a number",
    "+hyp.optim.nestrov=True": r"^hyp\.optim\.nestrov: did you mean hyp\.optim\.nesterov\?$",
    "+hyp.lr=0.1": r"^hyp\.lr: did you mean hyp\.optim\.lr\?$",
    "+impl.cuda_graphs=True": r"impl\.cuda_graphs: removed; use impl\.compile=reduce-overhead",
    "+modle=vgg11": r"^modle: did you mean model\?$",
    "+qqq.zzz=1": r"^qqq: there is no such key$",
    "~hyp.steps": r"hyp\.steps: this key is missing",
    "hyp.optim.lr=1e300": r"hyp\.optim\.lr: should be at most 3\.4e\+38, .*single precision",
    "hyp.norm_bias.bias=-1e39": r"hyp\.norm_bias\.bias: should be at most 3\.4e\+38",
    "hyp.optim.lr=-1": r"hyp\.optim\.lr: .*greater than or equal to 0",
    "hyp.optim.name=madam": r"hyp\.optim\.name=madam: unknown; known: 'gd', 'adam', 'fista'",
    "model.name=resnot": r"model\.name=resnot: unknown; known: 'resnet', 'densenet', .*, 'linear'",
    "model=vgg16 +model.width=3": r"model\.width: there is no such key in the chosen model, only in resnet, mlp, cnn$",
    "model=nfn model.se_ratio=2": r"model\.se_ratio: .*less than or equal to 1",
    "model=densenet121 model.drop_rate=1": r"model\.drop_rate: .*less than 1",
    "model=torchvision": r"model\.name: .*string \(got a blank\)",
    "model=import": r"model\.target: .*string \(got a blank\)",
    "model=torchvision model.family=keras": r"model\.family=keras: unknown; known: .*'torchvision', 'timm', 'import'",
    "hyp.grad_reg.norm=1": r"hyp\.grad_reg\.norm: .*2",
    "hyp.grad_clip_norm=3": r"hyp\.grad_clip_norm: .*2 or 'inf'",
    "data.caching=disk": r"data\.caching: .*'device', 'ram'",
    "data.batch_size=1.5": r"data\.batch_size: ",
    "data.std=[0.1,0,0.1]": r"data\.std\.1: .*greater than 0",
    "seed=-1": r"seed: .*greater than or equal to 0",
    "hyp.optim_modification=SAM": r"hyp\.optim_modification=SAM: .*with a slash: hyp/optim_modification=SAM",
    "hyp.optim=adam": r"hyp\.optim=adam: .*with a slash: hyp/optim=adam",
    "data.db=LMDB": r"data\.db=LMDB: .*with a slash: data/db=LMDB",
    "hyp.train_semi_stochastic=True": r"hyp\.train_semi_stochastic=True: .*LMDB",
    "data/db=LMDB data.db.write_frequency=0": r"data\.db\.write_frequency: .*greater than or equal to 1",
    "data/db=LMDB +data.db.chunks=1": r"data\.db\.chunks: there is no such key",
    "hyp.label_noise=1": r"hyp\.label_noise: .*less than 1 \(got 1\)",
    "hyp.optim.line_search=golden": r"hyp\.optim\.line_search: .*'wolfe', 'non-monotone' or 'restarting'",
    "hyp/optim=lbfgs hyp.optim.line_search=none": r"hyp\.optim\.line_search: .*'wolfe' or 'armijo'",
    "hyp/optim=fista hyp.optim.fista_mod=[1,1,5]": r"hyp\.optim\.fista_mod\.2: .*less than or equal to 4",
    "hyp/optim=gd_clip hyp.optim.norm_type=1": r"hyp\.optim\.norm_type: .*2 or 'inf'",
    "hyp/optim_modification=SAM hyp.optim_modification.rho=-1": r"hyp\.optim_modification\.rho: .*greater than",
    "hyp.optim_modification.name=SAN": r"hyp\.optim_modification\.name=SAN: unknown; known: 'none', 'lars'",
    "hyp/optim=gd_agc hyp.optim.dampening=0.5": r"hyp\.optim\.nesterov=True: needs hyp\.optim\.dampening=0",
    "hyp.optim.line_search=wolfe hyp.grad_noise.additive=0.1": r"hyp\.grad_noise: not with hyp/optim=gd .*=wolfe",
    "hyp.optim.line_search=restarting hyp.grad_noise.multiplicative=0.1": r"hyp\.grad_noise: not with .*=restarting",
    "hyp/optim=lbfgs hyp.grad_noise.additive=0.1": r"hyp\.grad_noise: not with hyp/optim=lbfgs",
    "hyp/optim=lbfgs hyp.norm_bias.strength=0.1": r"hyp\.norm_bias: not with hyp/optim=lbfgs .*no bias",
    "hyp/optim=lbfgs hyp.batch_clip=1": r"hyp\.batch_clip: not with hyp/optim=lbfgs .*not clipped",
    "hyp.optim.line_search=wolfe hyp.gradient_average=moving": r"hyp\.gradient_average=moving: not with .*wolfe",
    "hyp.optim.line_search=wolfe hyp/optim_modification=sam": r"hyp/optim_modification=SAM: not with .*wolfe",
    "hyp/optim=lbfgs hyp/optim_modification=larc": r"hyp/optim_modification=LARC: not with hyp/optim=lbfgs",
    "impl.threads=0": r"impl\.threads: should be a positive number or auto \(got 0\)",
    "impl.threads=some": r"impl\.threads: should be a positive number or auto",
    "impl.JIT=script": r"impl\.JIT: TorchScript is not supported",
    "impl.compile=fast": r"impl\.compile",
    "impl.mixed_precision=half": r"impl\.mixed_precision",
    "impl=fast impl.mixed_precision=True impl.dtype=double": r"impl\.mixed_precision=True: needs impl\.dtype=float",
    "impl.grad_scaling=True": r"impl\.grad_scaling=True: needs impl\.mixed_precision=float16",
    "impl.mixed_precision=True impl.grad_scaling=8": r"impl\.grad_scaling=8\.0: needs impl\.mixed_precision=float16",
    "impl.mixed_precision=float16 impl.grad_scaling=1000": r"impl\.grad_scaling: .*a power of two \(got 1000\)",
    "impl.mixed_precision=float16 impl.grad_scaling=-2": r"impl\.grad_scaling: .*a power of two \(got -2\)",
    "impl.mixed_precision=float16 impl.grad_scaling=": r"impl\.grad_scaling: should be True, False or a power of two",
    "impl.mixed_precision=float16 impl.dtype=double": r"impl\.mixed_precision=float16: needs impl\.dtype=float",
    "impl.logger=[wandb,mlflow]": r"impl\.logger\.1: .*'tensorboard', 'wandb' or 'trackio' \(got 'mlflow'\)",
    "impl.checkpoint.max_minutes=0": r"impl\.checkpoint\.max_minutes: .*greater than 0",
    "impl/setup=distributed impl.setup.rank=mpi": r"impl\.setup\.rank: .*a number, SLURM or PBS",
    "impl/setup=distributed impl.setup.processes_per_node=0": r"processes_per_node: .*a positive number, or -1",
    "impl/setup=distributed impl.setup.backend=mpi": r"impl\.setup\.backend: .*'nccl' or 'gloo'",
    "hyp.optim.dampening=0.5": r"hyp\.optim\.nesterov=True: needs hyp\.optim\.dampening=0",
    "data.std=": r"data\.mean and data\.std: give both",
    "impl.dtype=double impl.mixed_precision=True": r"impl\.mixed_precision=True: needs impl\.dtype=float",
    "hyp=fb1 hyp.blocks_per_update=2": r"hyp\.blocks_per_update=2: only in stochastic mode",
    "hyp=fb1 hyp.sample_with_replacement=True": r"hyp\.sample_with_replacement=True: only in stochastic mode",
    "impl.setup=distributed": r"impl\.setup=distributed: .*with a slash: impl/setup=distributed",
    "hyp.steps=[1,2]": r"hyp\.steps: .*valid integer",
    "hyp.shuffle=perhaps": r"hyp\.shuffle: .*valid boolean",
    "seed=abc": r"seed: .*valid integer",
    f"seed={2**63}": r"seed: should be below 2\^63",
    "data.augmentations_train=RandomCrop": r"data\.augmentations_train: .*dictionary",
    "name=a/b": r"name: should be part of a file name",
    "name='a\x1b'": r"name: should be without control characters",
    "name='a\u202eb'": r"name: should be without control characters and invisible characters",
    f"name={'a' * 201}": r"name: should be at most 200 bytes long",
    f"impl.checkpoint.name=a/{'b' * 201}": r"impl\.checkpoint\.name: should be at most 200 bytes long",
    "impl.checkpoint.name=mine/": r"impl\.checkpoint\.name: should be .* the path of a file",
    "impl.logger={}": r"impl\.logger",
    "data.batch_size=0": r"data\.batch_size: .*greater than or equal to 1",
    "model=resnet20 model.width=0": r"model\.width: .*greater than or equal to 1",
    "hyp.optim.lr=nan": r"hyp\.optim\.lr: .*finite",
    "hyp.label_smoothing=1": r"hyp\.label_smoothing: .*less than 1",
    "hyp/optim=lbfgs hyp/optim_modification=SAM": r"hyp/optim_modification=SAM: not with",
    "analysis.flatness_norm=block": r"analysis\.flatness_norm: .*'filter'",
    "analysis.flatness_step_size=0": r"analysis\.flatness_step_size: .*greater than 0",
    "analysis.check_every_nth_step=0": r"analysis\.check_every_nth_step: .*greater than or equal to 1",
    "analysis.internal_batch_size_chunks=0": r"analysis\.internal_batch_size_chunks: .*greater than or",
    "analysis.sample_gradient_norms=both": r"analysis\.sample_gradient_norms: .*'train' or 'eval'",
    "analysis.sharpness.top_k=0": r"analysis\.sharpness\.top_k: .*greater than or equal to 1",
    "analysis.sharpness.tolerance=0": r"analysis\.sharpness\.tolerance: .*greater than 0",
    "analysis.sharpness.matrix=fisher": r"analysis\.sharpness\.matrix: .*'hessian', .* or 'central-differences'",
    "analysis.sharpness.trace_matvecs=3": r"analysis\.sharpness\.trace_matvecs: .*0, or greater than",
    "data/db=LMDB data.db.rounds=0": r"data\.db\.rounds: .*greater than or equal to 1",
    "data/db=LMDB data.db.access=both": r"data\.db\.access: .*'get' or 'cursor'",
    "data/db=LMDB data.db.normalize=True": r"data\.db\.normalize: .*stored as bytes.*data\.normalize",
    "data/db=LMDB data.db.name=HDF5": r"data\.db\.name=HDF5: unknown; known: 'none', 'lmdb'",
}

REFUSED_BY_HYDRA = {
    "hyp.stepz=3": "stepz",
    "data.db.rounds=2": "rounds",
    "data=digits data.resize_on_read=False": "resize_on_read",
    "data=ImageNot": r"(?s)Could not find 'data/ImageNot'.*CIFAR10",
    "model=resnet19": r"(?s)Could not find 'model/resnet19'.*resnet18",
    "hyp/optim=newton": r"(?s)Could not find 'hyp/optim/newton'.*adam",
    "analysis=everything": r"(?s)Could not find 'analysis/everything'.*edge_of_stability",
    "hyp=none": "Could not find 'hyp/none'",
}


@pytest.mark.parametrize(("overrides", "message"), MISTAKES.items())
def test_a_mistake_is_named(overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        settings_for(*overrides.split(" "))
    assert "\n" not in str(refused.value)


def test_hydra_names_its_refusals() -> None:
    for override, message in REFUSED_BY_HYDRA.items():
        with pytest.raises(HydraException, match=message):
            composed(*override.split())


def test_an_unknown_interpolation_is_named() -> None:
    with pytest.raises(ValueError, match="nowhere"):
        parse(composed("name=${nowhere}"))


def test_settings_with_changed_values_are_those_of_their_command_line() -> None:
    line = ["model=resnet20", "hyp/optim=adam", "hyp.steps=7", "hyp.grad_clip=", "hyp.optim.lr=1e-2", "~hyp.shuffle"]
    line += ["+hyp.shuffle=True", "hyp.optim.betas=[0.5,0.9]", "data.augmentations_train={RandomCrop: [8, 1]}"]
    assert settings_for(*line) == parse(composed(*line))


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)data\.batch_size: .*\nhyp\.steps: "):
        settings_for("data.batch_size=x", "hyp.steps=y")


@pytest.mark.slow
@given(
    st.fixed_dictionaries(
        {
            "hyp.steps": st.integers(1, 10_000),
            "hyp.optim.lr": st.floats(0, 10),
            "data.batch_size": st.integers(1, 4096),
            "hyp.grad_clip": st.none() | st.floats(1e-6, 100),
            "hyp.shuffle": st.booleans(),
        }
    )
)
@settings(max_examples=8, deadline=None)
def test_what_is_typed_is_what_is_meant(values: dict[str, Any]) -> None:
    cfg = composed(*(f"{key}={'' if value is None else value}" for key, value in values.items()))
    run = parse(cfg)
    hyp = run.hyp
    assert values == {
        "hyp.steps": hyp.steps,
        "hyp.optim.lr": hyp.optim.lr,
        "data.batch_size": run.data.batch_size,
        "hyp.grad_clip": hyp.grad_clip,
        "hyp.shuffle": hyp.shuffle,
    }
    assert to_tree(cfg)["hyp"]["grad_clip"] == values["hyp.grad_clip"]


TREE = composed_tree()


def outcome(make: Callable[[], Run]) -> Run | str:
    """The run, or the message of its refusal; any other error is one."""
    try:
        return make()
    except (ValueError, HydraException, OmegaConfBaseException) as refusal:
        return str(refusal)


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


KEYS = st.sampled_from(sorted(leaves(TREE)))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=4), SCALARS, max_size=3)


@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3))
@settings(max_examples=300, deadline=None)
def test_any_values_are_refused_by_name_or_make_a_run(values: dict[str, Any]) -> None:
    outer = {k: v for k, v in values.items() if not any(k.startswith(f"{other}.") for other in values)}
    result = outcome(lambda: parse_tree(replace_keys(TREE, outer)))
    assert isinstance(result, Run) or any(key in result for key in outer)


WORDS = st.text(st.characters(codec="ascii", exclude_characters="\n"), max_size=12)
OVERRIDES = st.builds("{}{}{}{}".format, st.sampled_from(["", "", "+", "~", "++"]), KEYS | WORDS, st.just("="), WORDS)


@given(st.lists(OVERRIDES | WORDS, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_command_line_is_refused_or_makes_a_run(overrides: list[str]) -> None:
    result = outcome(lambda: parse(composed(*overrides)))
    assert isinstance(result, Run) or result.strip()
