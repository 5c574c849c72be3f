"""The report: means over seeds of the last step, each run once, diverged runs named, published values."""

import csv
import io
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from composing import ROOT, composed

from fullbatch.cli.report import main as report
from fullbatch.results.columns import RUN_COLUMNS, Kind
from fullbatch.results.experiments import experiment_name, format_mean, read_experiments
from fullbatch.results.ledger import JobDescription, Ledger
from fullbatch.results.published import SOURCE, find_published, published_rows
from fullbatch.runtime.plain_text import csv_cell, markdown, printable
from fullbatch.settings.parse import parse
from fullbatch.training.tables import add_run

BASE: dict[str, Any] = {
    "name": "fbaug_clip",
    "status": "all 3000 steps are taken",
    "model": "resnet18",
    "optimizer": "gd",
    "stoch": False,
    "augmentations": True,
    "valid_acc": 0.9,
    "train_acc": 1.0,
    "max_val_acc": 0.99,
    "size": 50_000,
    "batch_size": 128,
    "shuffle": False,
    "steps": 3000,
    "grad_clip": 0.25,
    "grad_reg.block_strength": 0.0,
    "optim.lr": 0.4,
    "seed": 1,
    "configuration": "abc",
    "folder": "outputs/x",
}


def write(folder: Path, *changes: dict[str, Any], data: str = "CIFAR10") -> Path:
    path = folder / "tables" / f"table_fb_{data}_runs.csv"
    for change in changes:
        add_run(path, {**BASE, **change})
    return path


def reported(folder: Path, capsys: pytest.CaptureFixture[str], form: str = "csv") -> Any:
    assert report([str(folder), "--format", form]) == 0
    output = capsys.readouterr().out
    return list(csv.DictReader(output.splitlines())) if form == "csv" else output


def test_mean_and_deviation_are_those_of_the_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracies = [0.91, 0.93, 0.98]
    write(tmp_path, *({"seed": seed, "valid_acc": accuracy} for seed, accuracy in enumerate(accuracies)))
    (row,) = reported(tmp_path, capsys)
    mean = sum(accuracies) / 3
    deviation = math.sqrt(sum((accuracy - mean) ** 2 for accuracy in accuracies) / 2)
    assert float(row["valid_mean"]) == pytest.approx(100 * mean, rel=1e-12)
    assert float(row["valid_deviation"]) == pytest.approx(100 * deviation, rel=1e-12)
    assert (row["experiment"], row["seeds"], row["steps"], row["mini-batching"]) == ("fbaug_clip", "3", "3000", "no")
    assert (row["modifications"], float(row["train_mean"]), float(row["train_deviation"])) == ("clip 0.25", 100, 0)
    assert (row["published_mean_unverified"], row["published_deviation_unverified"]) == ("93.85", "0.1")


def test_the_same_run_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {}, {}, {"seed": 2, "valid_acc": 0.8}, {"seed": 2, "valid_acc": 0.94})
    (row,) = reported(tmp_path, capsys)
    assert (row["seeds"], float(row["valid_mean"])) == ("2", pytest.approx(92))
    assert "2 runs repeat a seed; the last one counts; 1 of them had another" in reported(tmp_path, capsys, "markdown")


def test_diverged_runs_are_named_and_not_averaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverged = {"status": "diverged: step 3 is not finite", "valid_acc": 0.1}
    write(tmp_path, {"seed": 1}, {"seed": 2, **diverged}, {"seed": 3, **diverged}, {"seed": 3, "valid_acc": 0.92})
    write(tmp_path, {"name": "wild", "configuration": "wild", **diverged})
    first, second = reported(tmp_path, capsys)
    assert (first["seeds"], first["diverged"], float(first["valid_mean"])) == ("2", "1", pytest.approx(91))
    assert (second["seeds"], second["diverged"], second["valid_mean"]) == ("0", "1", "")
    shown = reported(tmp_path, capsys, "text")
    assert "fbaug_clip: diverged and not in the mean: seed 2" in shown
    assert re.search(r"wild .*│ 0 \+ 1 diverged │ +diverged │", shown)


def test_configurations_of_the_same_name_are_distinguished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, changes in enumerate(({"optim.lr": 0.4}, {"optim.lr": 0.8}, {"optim.lr": 0.8})):
        write(tmp_path, {"name": "mine", "configuration": f"c{number}", "shuffle": True, **changes})
    write(tmp_path, {"name": "mine", "model": "resnet50", "configuration": "c3"})
    write(tmp_path, {"name": "mine"}, data="digits")
    rows = reported(tmp_path, capsys)
    assert [row["modifications"] for row in rows] == [
        "shuffled, clip 0.25, optim.lr 0.4",
        "shuffled, clip 0.25, optim.lr 0.8, configuration c1",
        "shuffled, clip 0.25, optim.lr 0.8, configuration c2",
        "clip 0.25",
        "clip 0.25",
    ]
    assert [(row["data"], row["model"]) for row in rows[2:]] == [
        ("CIFAR10", "resnet18"),
        ("CIFAR10", "resnet50"),
        ("digits", "resnet18"),
    ]
    assert reported(tmp_path, capsys, "markdown").count("**") == 6


def test_results_are_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever was measured, experiments are told apart by what was chosen."""
    measured = [name for name, column in RUN_COLUMNS.items() if column.kind is Kind.RESULT and name != "status"]
    for number in (1, 2):
        results = dict.fromkeys(measured, 0.1 * number)
        write(tmp_path, {"name": "mine", "configuration": f"c{number}", "optim.lr": 0.1 * number, **results})
    assert [row["modifications"] for row in reported(tmp_path, capsys)] == [
        "clip 0.25, optim.lr 0.1",
        "clip 0.25, optim.lr 0.2",
    ]


@pytest.mark.parametrize("form", ["text", "markdown", "csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, form: str, encoding: str
) -> None:
    names = ["x[gn]", "[/data/mirror]", ":x:", "=cmd|' /C calc'!A0", "\x1b[31mred", "é", "two\nlines"]
    write(tmp_path, *({"name": name} for name in names))
    Ledger(tmp_path / "tables" / "ledger.sqlite").begin(JobDescription("j", "k", "[/x]\x1b", "d", (), 4, "c"), tmp_path)
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert report([str(tmp_path), "--format", form]) == 0
    stream.flush()
    shown = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
    assert shown.replace("\n", "").isprintable()
    expected = {"text": printable, "markdown": markdown, "csv": lambda name: str(csv_cell(name))}[form]
    for name in names:
        assert expected(name).encode(encoding, "backslashreplace").decode(encoding) in shown
    assert form == "csv" or expected("[/x]\x1b on d: not in the table: 1 interrupted") in shown


def test_tables_of_older_versions_have_no_hash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, *({"seed": seed, "configuration": "", "optim.lr": lr} for lr in (0.1, 0.2) for seed in (1, 2)))
    assert [row["seeds"] for row in reported(tmp_path, capsys)] == ["2", "2"]


def test_names_of_experiments_lack_the_seed() -> None:
    assert experiment_name("fb1_3", "3") == "fb1"
    assert experiment_name("fb1", "1") == "fb1"
    assert experiment_name("fb_10", "1") == "fb_10"
    assert [format_mean(values) for values in ([], [1.0], [1.0, 3.0])] == ["", "1.00", "2.00 ± 1.41"]


def test_published_values_are_shown_for_the_same_experiment_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"size": 5000, "steps": 100, "configuration": "small"})
    shown = reported(tmp_path, capsys, "text")
    assert "93.85" not in shown
    assert SOURCE not in shown
    assert "fbaug_clip: differs from the published experiment: size 5000, there 50000; steps 100, there 3000" in shown
    write(tmp_path, {})
    shown = reported(tmp_path, capsys, "text")
    assert "93.85 ± 0.10" in shown
    assert "published: unverified" in SOURCE
    assert SOURCE in shown
    assert find_published("fbaug_clip", "digits", {}) is not None
    assert find_published("mine", "CIFAR10", {}) is None


def test_published_settings_are_those_of_the_experiments_in_the_script() -> None:
    quoted = {name: (row["valid_acc"], row["deviation"]) for name, row in published_rows().items()}
    assert quoted == {
        "baseline_sgd": ("95.70", "0.11"),
        "fbaug_1": ("75.42", "0.13"),
        "fbaug_2": ("87.36", "1.23"),
        "fbaug_clip": ("93.85", "0.10"),
        "fbaug_gradreg_lr08": ("95.36", "0.07"),
        "fbaug_highreg_lr08": ("95.67", "0.08"),
        "fbaug_highreg_lr08_shuffle": ("95.91", "0.14"),
    }
    lines = (ROOT / "train.sh").read_text(encoding="utf-8").splitlines()
    for name in quoted:
        (line,) = [line for line in lines if line.split() and line.split()[0] == name]
        run = parse(composed(*line.split()[1:]))
        settings = {
            **{
                "model": "resnet18",
                "optimizer": run.hyp.optim.name,
                "augmentations": bool(run.data.augmentations_train),
            },
            **{"size": run.data.size, "stoch": run.hyp.train_stochastic, "shuffle": run.hyp.shuffle},
            **{"steps": run.hyp.steps, "batch_size": run.data.batch_size, "grad_clip": run.hyp.grad_clip or ""},
            "grad_reg.block_strength": run.hyp.grad_reg.block_strength,
        }
        published = find_published(name, run.data.name, {key: str(value) for key, value in settings.items()})
        assert published is not None
        assert published.differences == ()


def test_jobs_that_are_not_finished_are_mentioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {})
    ledger = Ledger(path.with_name("ledger.sqlite"))
    for job in "ab":
        ledger.begin(JobDescription(job, "k", "slow", "CIFAR10", (), 4, "c"), tmp_path)
    assert "slow on CIFAR10: not in the table: 2 interrupted" in reported(tmp_path, capsys, "text")


def test_tables_come_from_files_and_folders_each_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {})
    other = write(tmp_path / "other", {"seed": 2})
    places = [str(place) for place in (path, path.parent, tmp_path, other)]
    assert report([*places, "--format", "csv", "--output", str(tmp_path / "report.csv")]) == 0
    assert capsys.readouterr().out == ""
    with (tmp_path / "report.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["seeds"] == "2"
    assert len(read_experiments([path])[0].runs) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nowhere", None, r"nowhere: no tables of runs here"),
        ("table_fb_x_runs.csv", b"", r"table_fb_x_runs\.csv: not a table of runs"),
        ("table_fb_x_runs.csv", b"a\tb\n1\t2\n", r"not a table of runs \(without a column name\)"),
        ("table_fb_x_runs.csv", b"\xff\xfe\x00", r"not a table of runs"),
        ("table_fb_x_runs.csv", b"name\tstatus\tseed\tvalid_acc\na\tb\t1\thigh\n", r"valid_acc in row 1 is 'high'"),
        ("table_fb_x_runs.csv", b"name\tstatus\tseed\tvalid_acc\na\tb\n", r"row 1 has another number of cells"),
        ("table_fb_x_runs.csv", b"name\tstatus\tseed\tvalid_acc\na\tb\t1\t0.5\t3\n", r"row 1 has another number of"),
        ("table_fb_x_runs.csv", b"name\tstatus\n" + b"x" * 200_000 + b"\t1\n", r"field larger than field limit"),
        ("letter.csv", b"name\tstatus\tseed\tvalid_acc\n1\t2\t3\t4\n", r"letter\.csv: not a table of runs"),
    ],
)
def test_files_that_are_not_tables_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert report([str(tmp_path / name)]) == 2
    shown = capsys.readouterr()
    assert re.search(message, shown.err)
    assert shown.out == ""
