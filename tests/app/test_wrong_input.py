"""Wrong input on the command line: an exit status, one message that says what was wrong, and nothing damaged."""

import copy
import ctypes
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import ROOT
from running import SMALL, run_in_process

from fullbatch.training.checkpoint import load_checkpoint, save_checkpoint

NAMED = "impl.checkpoint.name=mine"
LMDB = "data/db=LMDB data.db.path=db"
HYDRA, MISTAKE = 1, 2  # who refuses


class Evil:
    """Unpickling this writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


def checkpoint(folder: Path) -> Path:
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints" / "mine.pth"


def with_checkpoint(content: object) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        path = checkpoint(folder)
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)

    return prepare


def with_database(content: bytes) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / "db" / "digits_train_60x1").mkdir(parents=True)
        (folder / "db" / "digits_train_60x1" / "data.mdb").write_bytes(content)

    return prepare


def make(*names: str) -> Callable[[Path], None]:
    """Folders, and files where a name does not end in a slash."""

    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).mkdir(parents=True) if name.endswith("/") else (folder / name).touch()

    return prepare


@dataclass(frozen=True)
class Case:
    line: str
    status: int
    message: str
    prepare: Callable[[Path], object] = field(default=lambda folder: None)


CASES = [
    # refused by Hydra
    Case("hyp.stepz=3", HYDRA, r"^hyp\.stepz: did you mean hyp\.steps\?$"),
    Case("-m hyp.lr=0.1,0.2", HYDRA, r"^hyp\.lr: did you mean hyp\.optim\.lr\?$"),
    Case("hyp/optimizer=adam", HYDRA, r"^hyp/optimizer: did you mean hyp/optim"),
    Case("hyp.optim.betas=[0.9,0.9]", HYDRA, r"^hyp\.optim\.betas: there is no such key .*hyp/optim, only in adam$"),
    Case("hyp.grad_reg={epsi: 1}", HYDRA, r"^hyp\.grad_reg\.epsi: did you mean hyp\.grad_reg\.eps"),
    Case("+hyp.steps=3", HYDRA, r"^\+hyp\.steps: the key exists; leave out the plus$"),
    Case("name=a,b", HYDRA, r"""^name=a,b: .* needs -m; for a text type "name='a,b'", for a list name=\[a,b\]$"""),
    Case("hyp.steps", HYDRA, r"^Error parsing override 'hyp.steps': it should be key=value$"),
    Case("a..b=3", HYDRA, r"^Error parsing override 'a\.\.b=3'"),
    Case("+=3", HYDRA, r"Error parsing override '\+=3': it should be key=value$"),
    Case("data=digitz", HYDRA, r"^data=digitz: did you mean digits\? known: CIFAR10"),
    Case("hyp=null", HYDRA, r"^hyp=null: unknown; known: .*fb1"),
    Case("-m hyp=glob(zz*)", HYDRA, r"^the sweep has no jobs"),
    Case("base_dir=${nowhere}", HYDRA, r"Interpolation key 'nowhere' not found"),
    # settings, and what they say of data and models
    Case("hyp.steps=many", MISTAKE, r"^hyp\.steps: .*valid integer.*'many'"),
    Case("hyp.train_semi_stochastic=True", MISTAKE, r"^hyp\.train_semi_stochastic=True: .* needs data/db=LMDB"),
    Case("data.augmentations_train={RandomCorp: 8}", MISTAKE, r"^data\.augmentations_train\.RandomCorp: .*RandomCrop"),
    Case("data=imagefolder data.path=no data.size= data.valid_size=", MISTAKE, r"^data\.path=.*no: no such folder"),
    # databases
    Case(LMDB, MISTAKE, r"^db/digits_train_60x1: not an intact database of this", with_database(b"a letter")),
    Case(LMDB, MISTAKE, r"^db/digits_train_60x1: not an intact database of this", make("db/digits_train_60x1/")),
    Case(LMDB, MISTAKE, r"^db: not a directory|^db/.*: not a directory|^db: file exists", make("db")),
    # checkpoints
    Case(NAMED, MISTAKE, r"mine\.pth: damaged or truncated \(", with_checkpoint(b"")),
    Case(NAMED, MISTAKE, r"mine\.pth: damaged or truncated \(", with_checkpoint(b"PK\x03\x04 so")),
    Case(NAMED, MISTAKE, r"mine\.pth: a file of another program", with_checkpoint({"weight": torch.zeros(1)})),
    Case(NAMED, MISTAKE, r"mine\.pth: not a checkpoint of this program .*contains more than", with_checkpoint(Evil())),
    Case(NAMED, MISTAKE, r"mine\.pth: is a directory", make("checkpoints/mine.pth/")),
    Case(NAMED, MISTAKE, r"^checkpoints: file exists", make("checkpoints")),
    # places
    Case("base_dir=taken/x", MISTAKE, r"^taken/x/.*: not a directory", make("taken")),
    Case("-m base_dir=taken/x", MISTAKE, r"^taken/x/.*: not a directory", make("taken")),
    Case("", MISTAKE, r"^tables: file exists", make("tables")),
    Case("", MISTAKE, r"table_fb_digits_runs\.csv: is a directory", make("tables/table_fb_digits_runs.csv/")),
]


@pytest.fixture(autouse=True)
def _launched_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    return lambda *arguments: run_in_process(monkeypatch, tmp_path, *SMALL, *arguments)


def words(line: str) -> list[str]:
    return [line] if ": " in line else line.split()


def contents(folder: Path) -> dict[Path, bytes]:
    """All files of the user; run folders and locks may come, and the ledger notes what happened."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file() and folder / "outputs" not in path.parents]
    files = [path for path in files if path.name != "ledger.sqlite"]
    return {path: path.read_bytes() for path in files}


def assert_refused(shown: Any, message: str) -> None:
    assert re.search(message, shown.err, flags=re.MULTILINE), shown.err
    assert "Traceback" not in shown.err + shown.out
    assert len(shown.err.splitlines()) == 1, shown.err


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.line[:40]}:{case.message[-20:]}")
def test_it_is_refused_and_nothing_is_damaged(
    case: Case, script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case.prepare(tmp_path)
    before = contents(tmp_path)
    assert script(*words(case.line)) == case.status
    assert_refused(capsys.readouterr(), case.message)
    assert contents(tmp_path) == before


OTHERS = {
    "model.width=8": r"model\.width: 4 there, 8 here",
    "hyp.optim.lr=0.2": r"hyp\.optim\.lr: 0\.1 there, 0\.2 here",
    "seed=7": r"seed: 1 there, 7 here",
    "data.batch_size=30": r"data\.batch_size: 20 there, 30 here",
}


@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(NAMED, "hyp.steps=1") == 0
    before = contents(tmp_path)
    for change, message in OTHERS.items():
        capsys.readouterr()
        assert script(NAMED, "hyp.steps=1", change) == MISTAKE
        assert_refused(capsys.readouterr(), message)
        assert contents(tmp_path) == before


def spoil_weights(content: dict[str, Any]) -> None:
    content["state"]["model"]["fc.bias"][2] = torch.nan


def lose_weights(content: dict[str, Any]) -> None:
    del content["state"]["model"]["fc.weight"]


def spoil_momentum(content: dict[str, Any]) -> None:
    content["state"]["optimizer"]["state"][0]["momentum_buffer"][0] = torch.inf


def change_weight_decay(content: dict[str, Any]) -> None:
    content["state"]["optimizer"]["param_groups"][0]["weight_decay"] = 0.5


def lose_generator(content: dict[str, Any]) -> None:
    content["state"]["rng"] = content["state"]["rng"][:10]


def change_seed(content: dict[str, Any]) -> None:
    content["seed"] = -1


SPOILED = {
    change_seed: r"mine\.pth: the entry seed is -1; accepted: numbers from 0",
    spoil_momentum: r"mine\.pth: the file holds non-finite values \(the entry state\.optimizer\.state\.0\.mom",
    change_weight_decay: r"mine\.pth: the entry state\.optimizer\.param_groups\.0\.weight_decay is 0\.5, in the config",
    lose_generator: r"mine\.pth: the entry state\.rng is no state of the random number generator",
    spoil_weights: r"mine\.pth: 1 entries of the weights are not finite \(fc\.bias\)",
    lose_weights: r"mine\.pth: the weights are those of another model: 1 entries differ \(fc\.weight: \(10, 16\)",
}


@pytest.mark.slow
def test_weights_that_cannot_be_used_are_named(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(NAMED, "hyp.steps=1") == 0
    path = tmp_path / "checkpoints" / "mine.pth"
    whole = load_checkpoint(path)
    for spoil, message in SPOILED.items():
        content = copy.deepcopy(whole)
        spoil(content)
        save_checkpoint(path, content["state"], config=content["config"], seed=content["seed"])
        capsys.readouterr()
        before = contents(tmp_path)
        assert script(NAMED) == MISTAKE
        assert_refused(capsys.readouterr(), message)
        assert contents(tmp_path) == before


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint(
    script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script(NAMED, "hyp.steps=2") == 0
    before = contents(tmp_path)
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # below a checkpoint's size
    try:
        assert script(NAMED) == MISTAKE
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_refused(
        capsys.readouterr(), r"^checkpoints/mine\.pth: file too large \(raise .*ulimit -f.*\); the last checkpoint is"
    )
    assert contents(tmp_path) == before
    assert script(NAMED) == 0


def without_privileges() -> None:
    """Give up root's right to write where it is forbidden; others lack it anyway."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP; takes effect at exec


WITHOUT_RIGHTS = """
import sys
sys.path[:0] = [{tests!r}]
import pytest
from running import SMALL, run_in_process
from pathlib import Path
for place in sys.argv[1:]:
    with pytest.MonkeyPatch.context() as patch:
        status = run_in_process(patch, Path(place).parent, *SMALL, *{arguments!r})
    print(place, status)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="uses Linux capabilities")
@pytest.mark.slow
def test_a_place_that_cannot_be_written_is_named_before_training(tmp_path: Path) -> None:
    places = [tmp_path / name / name for name in ("outputs", "tables", "checkpoints", "db")]
    for place in places:
        place.mkdir(parents=True)
        place.chmod(0o500)
    code = WITHOUT_RIGHTS.format(tests=str(ROOT / "tests"), arguments=[NAMED, *LMDB.split()])
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, places)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=without_privileges,
        capture_output=True,
        text=True,
        check=False,
    )
    for place in places:
        place.chmod(0o700)
        assert f"{place} {MISTAKE}\n" in ended.stdout, ended.stderr
        assert re.search(rf"^[^:]*{place.name}.*: permission denied", ended.stderr, re.MULTILINE)
    assert "Traceback" not in ended.stderr
    assert "step 1/" not in ended.stdout
