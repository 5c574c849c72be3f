"""Loss landscapes of checkpoints as users compute them."""

import csv
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import lmdb
import pytest
import torch
from composing import ROOT, composed, settings_for
from running import SMALL, run_in_process

from fullbatch.build.data import build_data, build_loader
from fullbatch.build.optimizer import build_optimizer
from fullbatch.build.problem import build_model
from fullbatch.landscape.surface import PointEvaluator
from fullbatch.models.model_file import read_model
from fullbatch.models.weights import load_weights
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.losses import loss_function
from fullbatch.optim.weight_decay import decay_penalty
from fullbatch.settings.parse import parse

pytestmark = pytest.mark.slow

CRUNCH = ROOT / "crunch_loss_landscape.py"
TRAIN = [*SMALL, "hyp.label_smoothing=0.1", "hyp.steps=2"]
NAMED = "impl.checkpoint.name=mine"
FEW = ["impl.device=cpu", "impl.threads=1", "viz.coordinates.x.num=3"]
PLANE = ["viz=2d", "viz.coordinates.y.num=3"]
Script = Callable[..., int]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launch folder with checkpoints of a model after 2 and after 3 steps, of another seed, of another model."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patched:
        for name, *changes in (["mine"], ["later", "hyp.steps=3"], ["apart", "seed=2"], ["wide", "model.width=8"]):
            assert run_in_process(patched, folder, *TRAIN, f"impl.checkpoint.name={name}", *changes) == 0
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    return tmp_path


@pytest.fixture
def crunch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Script:
    return lambda *arguments: run_in_process(monkeypatch, folder, *FEW, *arguments, script=CRUNCH)


def rows(folder: Path, name: str = "mine") -> dict[tuple[float, float], dict[str, float]]:
    """The newest table of a surface."""
    path = max((folder / "outputs").rglob(f"landscape_{name}.csv"), key=lambda path: path.stat().st_mtime_ns)
    with path.open(newline="") as file:
        table = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file, delimiter="\t")]
    return {(row["x"], row["y"]): row for row in table}


def expected(folder: Path, name: str = "mine") -> dict[str, float]:
    """The objective of a checkpoint on the training set as it is, in evaluation mode, from the parts alone."""
    run = parse(composed(*TRAIN, "data.augmentations_train="))
    data, device = build_data(run, 1), torch.device("cpu")
    model = build_model(run, data, 1, device).eval()
    load_weights(model, read_model(folder / "checkpoints" / f"{name}.pth").weights)
    optimizer, loss_fn = build_optimizer(run.hyp, model), loss_function(None, 0.1)
    regularizer = GradRegularizer(model, optimizer, loss_fn, block_strength=0.5)
    blocks = build_loader(run, data, data.train, 1, device).blocks(0)
    evaluation = FullBatchObjective(model, loss_fn, blocks, sub_batch=128, regularizer=regularizer).value()
    full_loss = evaluation.loss + evaluation.penalty + decay_penalty(optimizer)
    assert evaluation.penalty > 0
    return {"loss": float(evaluation.loss), "accuracy": float(evaluation.accuracy), "full_loss": float(full_loss)}


def test_a_line_has_the_objective_at_its_centre(
    crunch: Script, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (folder / "checkpoints" / "mine.pth").read_bytes()
    assert crunch(NAMED) == 0
    values = rows(folder)
    assert list(values) == [(-1, 0), (0, 0), (1, 0)]
    for name, value in expected(folder).items():
        assert values[0, 0][name] == pytest.approx(value, rel=1e-6)
    assert values[1, 0]["loss"] != pytest.approx(values[0, 0]["loss"])
    (place,) = (folder / "outputs").glob("*/*")
    assert {p.name for p in place.iterdir()} == {
        "log.txt",
        *(f"landscape_mine.{f}" for f in ("png", "html", "vtk", "csv")),
    }
    assert (folder / "checkpoints" / "mine.pth").read_bytes() == content
    assert {p.name for p in (folder / "checkpoints" / "mine.landscape").iterdir()} == {"data.mdb", "lock.mdb"}
    shown = capsys.readouterr().out
    assert "mine, 2 steps" in shown
    assert f"at the checkpoint: loss {values[0, 0]['loss']:.6g}" in shown


def test_the_same_line_again_computes_nothing_and_a_plane_what_is_new(
    crunch: Script, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert crunch(NAMED) == 0
    line, computed = rows(folder), []
    plain = PointEvaluator.__call__
    monkeypatch.setattr(PointEvaluator, "__call__", lambda *given: computed.append(given[1]) or plain(*given))
    assert crunch(NAMED, "viz.formats=csv") == 0
    assert not computed
    assert rows(folder) == line
    assert crunch(NAMED, *PLANE, "viz.formats=[CSV]") == 0
    assert sorted(computed) == [(x, y) for x in (-1, 0, 1) for y in (-1, 1)]
    assert line.items() < rows(folder).items()
    capsys.readouterr()
    assert crunch(NAMED, "hyp.optim.lr=0.2", "hyp.label_smoothing=0") == 2
    shown = capsys.readouterr()
    assert "not as in the checkpoint: hyp.optim.lr: 0.1 there, 0.2 here" in shown.out
    assert "not as in the checkpoint: hyp.label_smoothing: 0.1 there, 0 here" in shown.out
    assert re.match(r"checkpoints/mine\.landscape: holds another surface \(hyp\.label_smoothing: 0\.1 there", shown.err)
    assert crunch(NAMED, "viz.norm=layer") == 2
    assert "directions.norm: filter there, layer here" in capsys.readouterr().err
    assert crunch(NAMED, "viz.norm=layer", "viz.database_name=layers", "viz.formats=") == 0
    assert crunch(NAMED, "viz.norm=layer", "viz.rebuild_existing_database=True", "viz.formats=[]") == 0


def test_between_two_checkpoints_each_has_its_own_value(crunch: Script, folder: Path) -> None:
    towards = ["viz.directions=between", "viz.coordinates.x.min=0", "viz.coordinates.x.num=2", "viz.formats=csv"]
    assert crunch(NAMED, *towards, "viz.checkpoints=apart") == 0
    values = rows(folder)
    for point, name in (((0, 0), "mine"), ((1, 0), "apart")):
        for key, value in expected(folder, name).items():
            assert values[point][key] == pytest.approx(value, rel=1e-4)


def test_a_trajectory_is_found_by_pattern(crunch: Script, folder: Path) -> None:
    components = ["viz.directions=pca", "viz.checkpoints=[la*r.pth,mine,checkpoints/apart.pth]"]
    assert crunch(NAMED, *PLANE, *components, "viz.recalibrate=True", "viz.formats=[csv,png]") == 0
    assert len(rows(folder)) == 9


def test_modes_and_missing_parts(crunch: Script, folder: Path) -> None:
    quiet = ["viz.formats=csv", "viz.coordinates.x.num=1", "viz.coordinates.x.min=0", "viz.coordinates.x.max=0"]
    assert crunch(NAMED, *quiet, "viz.compute_full_loss=False", "viz.model_eval=False") == 0
    (row,) = rows(folder).values()
    assert row.keys() == {"x", "y", "loss", "accuracy"}
    assert row["loss"] != pytest.approx(expected(folder)["loss"])
    assert crunch(NAMED, *quiet, "hyp.loss_modification=maxup-3", "viz.database_name=maxup") == 0
    assert rows(folder, "maxup")[0, 0]["loss"] == pytest.approx(expected(folder)["loss"], rel=1e-6)


def test_a_file_of_another_program_is_looked_at_as_the_command_line_says(
    crunch: Script, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(read_model(folder / "checkpoints" / "mine.pth").weights, folder / "checkpoints" / "theirs.pth")
    assert crunch(*TRAIN, "impl.checkpoint.name=theirs", "viz.formats=csv") == 0
    assert "theirs, unknown steps" in capsys.readouterr().out
    for name, value in expected(folder).items():
        assert rows(folder, "theirs")[0, 0][name] == pytest.approx(value, rel=1e-6)


def test_a_dry_run_leaves_nothing(crunch: Script, folder: Path) -> None:
    before = sorted((folder / "checkpoints").iterdir())
    assert crunch(NAMED, *PLANE, "dryrun=True") == 0
    assert sorted((folder / "checkpoints").iterdir()) == before
    assert [path.name for path in (folder / "outputs").rglob("*.*") if path.is_file()] == ["log.txt"]


def test_a_signal_ends_it_after_a_point_and_it_continues(
    crunch: Script, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    computed, plain = [], PointEvaluator.__call__

    def interrupted(*given: object) -> object:
        computed.append(given[1])
        if len(computed) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(PointEvaluator, "__call__", interrupted)
    assert crunch(NAMED, *PLANE) == 128 + signal.SIGTERM
    assert "paused; the same command continues with checkpoints/mine.landscape" in capsys.readouterr().err
    assert len(computed) == 2
    assert crunch(NAMED, *PLANE, "viz.formats=csv") == 0
    assert "continuing with 2 of 9 points computed" in capsys.readouterr().out
    assert len(computed) == len(set(computed)) == 9


def with_surface(content: bytes | None) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        place = folder / "checkpoints" / "mine.landscape"
        if content is None:
            with lmdb.open(str(place)) as environment, environment.begin(write=True) as transaction:
                transaction.put(b"key", b"value")
        else:
            place.mkdir()
            (place / "data.mdb").write_bytes(content)

    return prepare


@dataclass(frozen=True)
class Case:
    command: str
    message: str
    prepare: Callable[[Path], object] = field(default=lambda folder: None)


BETWEEN = f"{NAMED} viz.directions=between"
CASES = [
    Case("", r"^impl\.checkpoint\.name: blank; give the name or the path of the checkpoint to evaluate"),
    Case("impl.checkpoint.name=yours", r"^impl\.checkpoint\.name=yours: there is no file checkpoints/yours\.pth"),
    Case(f"{NAMED} viz=none", r"^viz=none: there is nothing to compute; accepted: 1d, 2d"),
    Case(f"{NAMED} viz.type=2d", r"^viz\.type=2d: a plane, so .* should be 2 or more"),
    Case(
        f"{NAMED} viz.coordinates.y.num=3 viz.coordinates.y.max=1", r"^viz\.type=1d: a line, so .*y\.num=3 should be 1"
    ),
    Case(f"{NAMED} viz.coordinates.x.min=2", r"^viz\.coordinates\.x: min=2 is larger than max=1"),
    Case(f"{NAMED} viz.checkpoints=apart", r"^viz\.checkpoints: only with viz\.directions=between or"),
    Case(BETWEEN, r"^viz\.checkpoints: blank; viz\.directions=between needs some"),
    Case(
        f"{BETWEEN} viz.checkpoints=nobody", r"^viz\.checkpoints=nobody: there is neither checkpoints/nobody\.pth nor"
    ),
    Case(f"{BETWEEN} viz.checkpoints=mine", r"^viz\.checkpoints: .*there is nothing between them"),
    Case(f"{BETWEEN} viz.checkpoints=[apart,later,mine]", r"^viz\.checkpoints: 3 other checkpoints: a line needs one"),
    Case(f"{BETWEEN} viz.checkpoints=wide", r"^checkpoints/wide\.pth: the weights are those of another model"),
    Case(f"{NAMED} viz.directions=pca viz.checkpoints=later", r"^viz\.checkpoints: .*at least two checkpoints, not 1"),
    Case(
        f"{NAMED} viz.directions=pca viz.checkpoints=[mine,apart] {' '.join(PLANE)}",
        r"^viz\.directions: .*plane needs two",
    ),
    Case(f"{NAMED} viz.recalibrate=True viz.model_eval=False", r"^viz\.recalibrate=True: .*does not use"),
    Case(
        f"{NAMED} viz.map_size=2e6 viz.coordinates.x.num=9999",
        r"^viz\.map_size=2,000,000: .*increase it to at least that",
    ),
    Case(f"{NAMED} model.width=8", r"^mine: the weights are those of another model"),
    Case(NAMED, r"^checkpoints/mine\.landscape: not an intact database .*no LMDB file", with_surface(b"a letter" * 9)),
    Case(NAMED, r"^checkpoints/mine\.landscape: not an intact database .*no manifest", with_surface(None)),
    Case(NAMED, r"^checkpoints/mine\.landscape: file exists", lambda f: (f / "checkpoints" / "mine.landscape").touch()),
    Case(NAMED, r"mine\.pth: .*damaged", lambda f: [path.write_bytes(b"") for path in f.glob("checkpoints/mine*.pth")]),
]
REFUSED = [
    ("viz.type=3d", r"^viz\.type: .*'1d', '2d' or 'none'"),
    ("viz.coordinates.x.num=0", r"^viz\.coordinates\.x\.num: .*greater than or equal to 1"),
    ("viz.coordinates.x.max=inf", r"^viz\.coordinates\.x\.max: .*finite"),
    ("viz.norm=filtre", r"^viz\.norm: .*'filter', 'layer'"),
    ("viz.ignore_layers=bn", r"^viz\.ignore_layers: .*'biasbn'"),
    ("viz.formats=[png,gif]", r"^viz\.formats\.1: .*'png', 'pdf', 'svg', 'html', 'vtk' or 'csv' \(got 'gif'\)"),
    ("viz.directions=downhill", r"^viz\.directions: .*'random', 'between' or 'pca'"),
    ("viz.map_size=1", r"^viz\.map_size: .*greater than or equal to 1048576"),
    ("viz.database_name=../x", r"^viz\.database_name: should be .* below checkpoints/"),
]


def test_wrong_settings_are_named() -> None:
    for override, message in REFUSED:
        with pytest.raises(ValueError, match=message):
            settings_for(NAMED, override)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.command[-30:]}:{case.message[-20:]}")
def test_it_is_refused_and_nothing_is_damaged(
    case: Case, crunch: Script, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.prepare(folder)
    before = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("[!l]*") if path.is_file()}
    capsys.readouterr()
    assert crunch(*case.command.split()) == 2
    shown = capsys.readouterr()
    assert re.search(case.message, shown.err), shown.err
    assert len(shown.err.splitlines()) == 1
    assert "Traceback" not in shown.err + shown.out
    after = {path: path.read_bytes() for path in (folder / "checkpoints").rglob("[!l]*") if path.is_file()}
    assert {**after, **before} == after
    assert not {path for path in after if path.name == "data.mdb"} - before.keys()


def without_privileges() -> None:
    """Give up root's right to write where it is forbidden."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux capabilities")
def test_a_folder_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "checkpoints").chmod(0o500)
    ended = subprocess.run(
        [sys.executable, str(CRUNCH), *FEW, NAMED],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=without_privileges,
        capture_output=True,
        text=True,
        check=False,
    )
    (folder / "checkpoints").chmod(0o700)
    assert ended.returncode == 2
    assert ended.stderr.strip() == "checkpoints/mine.landscape: permission denied"


def test_a_model_that_overflows_is_reported(crunch: Script, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = ["viz.coordinates.x.max=1e30", "viz.coordinates.x.min=-1e30"]
    assert crunch(NAMED, *far) == 0
    assert "2 of 3 values are not finite: the model overflows there" in capsys.readouterr().err
    assert rows(folder)[0, 0]["loss"] < 10
