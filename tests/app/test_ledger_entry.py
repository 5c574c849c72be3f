"""The ledger is a file that anybody may have written: it moves no checkpoint that is not the job's own."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from old_files import GOLDEN

from fullbatch.app.identity import RunIdentity
from fullbatch.app.ledger_entry import LedgerEntry, _objection
from fullbatch.app.provenance import write_record
from fullbatch.results.ledger import JobDescription, Ledger, SweepPosition
from fullbatch.training.checkpoint import load_checkpoint

OLD = GOLDEN / "outputs" / "2" / "checkpoint.pth"
FILES = ("checkpoint.pth", "checkpoint.previous.pth")
KEPT = ("checkpoints.txt", "checkpoint-notes.txt", "other.txt")


@pytest.fixture(scope="module")
def identity() -> RunIdentity:
    stored = load_checkpoint(OLD)
    return RunIdentity(stored["config"], "k", "sweep", stored["seed"])


def other_job(folder: Path, _: RunIdentity) -> None:
    write_record(folder, "another job", None)


def own_job(folder: Path, identity: RunIdentity) -> None:
    write_record(folder, identity.job, None)


def damaged_record(folder: Path, _: RunIdentity) -> None:
    (folder / "run.json").write_text("[")


def damaged(folder: Path, _: RunIdentity) -> None:
    for name in FILES:
        (folder / name).write_bytes(b"a letter")


def linked(folder: Path, identity: RunIdentity) -> None:
    own_job(folder, identity)
    (folder / FILES[0]).rename(folder / "elsewhere.pth")
    (folder / FILES[0]).symlink_to("elsewhere.pth")


@pytest.mark.parametrize(
    ("place", "prepare", "change", "reason"),
    [
        ("launch/outputs/0", own_job, {}, ""),
        ("launch/outputs/0", lambda *_: None, {}, ""),  # of an earlier version
        ("home/0", own_job, {}, "the folder is outside of "),
        ("launch/outputs/0", other_job, {}, "it belongs to job another job, and this is "),
        ("launch/outputs/0", damaged_record, {}, "run.json: not the record of a run"),
        ("launch/outputs/0", damaged, {}, "checkpoint.pth: "),
        ("launch/outputs/0", linked, {}, "it is a symbolic link"),
        ("launch/outputs/0", lambda *_: None, {"seed": 2}, "seed: 1 there, 2 here"),
        ("launch/outputs/0", lambda *_: None, {"config": {}}, "with another configuration"),
    ],
)
def test_only_the_jobs_own_checkpoint_is_moved(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    identity: RunIdentity,
    place: str,
    prepare: Callable[[Path, RunIdentity], None],
    change: dict[str, Any],
    reason: str,
) -> None:
    launch, earlier, folder = tmp_path / "launch", tmp_path / place, tmp_path / "launch" / "again" / "0"
    earlier.mkdir(parents=True)
    folder.mkdir(parents=True)
    for name in FILES:
        shutil.copy(OLD, earlier / name)
    for name in KEPT:
        (earlier / name).touch()
    prepare(earlier, identity)
    before = {path: path.read_bytes() for path in earlier.iterdir()}
    ledger = Ledger(launch / "tables" / "ledger.sqlite")
    wanted = RunIdentity(**{**vars(identity), **change})
    description = JobDescription(wanted.job, "k", "sweep", "digits", (), 6, "c")
    ledger.begin(description, earlier)  # as if killed
    objection = partial(_objection, identity=wanted, roots=(launch, launch / "again"))
    with LedgerEntry(ledger, description, folder, SweepPosition(launch / "again", 0), objection) as entry:
        assert entry.was_unfinished
    moved = {path.name for path in folder.iterdir()}
    assert moved == (set() if reason else set(FILES))
    for path, content in before.items():
        assert path.name in moved or path.read_bytes() == content
    assert not reason or (f"the checkpoint in {earlier} is left there" in caplog.text and reason in caplog.text)
