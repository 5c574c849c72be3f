"""`impl=fast`: what `auto` stands for, on machines with and without the means."""

from pathlib import Path

import pytest
import torch
from composing import composed
from running import SMALL, rows_of, run_in_process
from streams import Late
from tape import Tape

from fullbatch.build import precision as build_speed
from fullbatch.build import trainer as build
from fullbatch.runtime import device as devices
from fullbatch.runtime.device import has_fast_bfloat16
from fullbatch.settings.parse import parse

CPU = torch.device("cpu")
FLYING = ["impl.device=cuda", "impl.cuda_graphs=True", "impl.blocks_in_flight=2"]
EXACT = "hyp.grad_reg.implementation=forward-over-reverse"


@pytest.mark.parametrize(
    ("overrides", "able", "expected"),
    [
        (["impl=fast"], True, torch.bfloat16),
        (["impl=fast"], False, False),
        (["impl=fast", "impl.dtype=double"], True, False),
        (["impl=fast", "hyp=gradreg"], True, False),  # differences of gradients
        (["impl=fast", "hyp=gradreg", EXACT], True, torch.bfloat16),
        (["impl=fast", "impl.mixed_precision=True", "hyp=gradreg"], False, torch.bfloat16),  # as told
        ([], True, False),
        (["impl.mixed_precision=BFloat16"], False, torch.bfloat16),
        (["impl.mixed_precision=float16", "hyp=gradreg"], False, torch.float16),
    ],
)
def test_bfloat16_is_used_where_it_is_fast_and_subtracts_nothing(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], able: bool, expected: object
) -> None:
    monkeypatch.setattr(build_speed, "has_fast_bfloat16", lambda device: able)
    assert build_speed.build_precision(parse(composed(*overrides)), CPU) == expected


def test_bfloat16_is_fast_where_the_processor_has_its_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True}, raising=False)
        assert has_fast_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert not has_fast_bfloat16(CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # before PyTorch 2.10
    assert not has_fast_bfloat16(CPU)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [([], "ieee"), (["impl=fast"], "tf32"), (["impl=fast", "hyp=gradreg"], "ieee"), (["impl.tf32=True"], "tf32")],
)
def test_without_tf32_float32_is_float32(overrides: list[str], expected: str) -> None:
    before = [switch.fp32_precision for switch in devices._tf32_switches()]
    try:
        build.set_up_machine(parse(composed("impl.threads=1", *overrides)))
        assert [switch.fp32_precision for switch in devices._tf32_switches()] == [expected, expected]
    finally:
        for switch, value in zip(devices._tf32_switches(), before, strict=True):
            switch.fp32_precision = value


def test_a_fast_run_records_its_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", "hyp.steps=2", "impl=fast") == 0
    (run,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert float(run["samples_per_second"]) == pytest.approx(60 * 2 / (2 * float(run["avg_step_time"])))


def test_compiled_gradients_have_no_derivative(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process(monkeypatch, tmp_path, *SMALL, "impl.compile=True", EXACT) == 2
    assert "impl.compile=True: not with hyp.grad_reg.implementation=forward-over-reverse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scaling", "expected"), [("False", 1.0), ("True", 1024.0), ("256", 256.0), ("1", 1.0), ("0.5", 0.5)]
)
def test_losses_are_scaled_as_told(scaling: str, expected: float) -> None:
    """In the objective and in its regularizer."""
    run = parse(composed(*SMALL, "hyp=gradreg", "impl.mixed_precision=float16", f"impl.grad_scaling={scaling}"))
    objective = build.build_trainer(run, seed=0).take_step.objective
    assert objective.regularizer is not None
    for part in (objective.block_objective, objective.regularizer):
        assert (part.mixed_precision, part.loss_scale) == (torch.float16, expected)


@pytest.mark.slow
def test_training_in_float16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside float32 it learns the same; what its numbers cannot hold is told."""
    float16 = ["impl.mixed_precision=float16", "impl.grad_scaling=True"]
    for options in ([], float16):
        assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", "hyp.steps=2", *options) == 0
    single, half = (float(row["train_loss"]) for row in rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv"))
    assert half != single
    assert half == pytest.approx(single, rel=1e-2)
    assert "float16" not in capsys.readouterr().err
    status = run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", *float16, f"impl.grad_scaling={2**60}")
    assert status == 3
    assert "gradients in float16 end at 65504: try a smaller impl.grad_scaling" in capsys.readouterr().err
    assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=gradreg", float16[0], "dryrun=True") == 0
    shown = capsys.readouterr().err
    assert "gradients below 6e-8 become 0; impl.grad_scaling=True keeps them" in shown
    assert "differences of float16 gradients magnify its rounding" in shown


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("hyp=gradreg", "hyp.warmup=1", "hyp.grad_reg.acc_strength=0.1")], ids=str)
def test_recorded_work_trains_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    tape = Tape()
    monkeypatch.setattr(build_speed, "recorder_on", lambda device: tape)
    for value in ("auto", "False"):
        more = ["data.batch_size=8", "hyp.steps=3", f"impl.cuda_graphs={value}"]
        assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", *options, *more) == 0
    one, other = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert tape.num_replays > tape.num_records > 0
    for name in ("train_loss", "full_loss", "valid_loss", "param_norm"):
        assert one[name] == other[name] != ""


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True])
def test_several_sub_batches_in_flight_train_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded: bool
) -> None:
    streams: list[Late] = []

    def some(device: torch.device, number: int) -> list[Late]:
        streams[:] = [Late() for _ in range(number)]
        return streams

    monkeypatch.setattr(build_speed, "streams_on", some)
    monkeypatch.setattr(build_speed, "recorder_on", lambda device: Tape())
    for number in (1, 3):
        more = ["hyp.warmup=1", "data.batch_size=4", "hyp.sub_batch=2", "hyp.steps=3"]
        more += [f"impl.blocks_in_flight={number}", f"impl.cuda_graphs={recorded}", "impl.dtype=double"]
        assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=gradreg", *more) == 0
    assert len(streams) == 3
    one, other = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert one["train_loss"] == other["train_loss"] != ""
    assert one["param_norm"] == other["param_norm"] != ""
    assert float(one["valid_loss"]) == pytest.approx(float(other["valid_loss"]), rel=1e-12)  # running statistics


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [("hyp=fb1",), ("hyp=fb1", "hyp/optim=adam"), ("hyp=gradreg", "hyp.warmup=1")], ids=str
)
def test_a_gpu_trains_as_the_processor_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]
) -> None:
    for machine in (["impl.device=cpu"], ["impl.device=cuda"], ["impl.device=cuda", "impl.cuda_graphs=True"], FLYING):
        more = ["data.batch_size=8", "hyp.steps=3", "impl.dtype=double", *machine]
        assert run_in_process(monkeypatch, tmp_path, *SMALL, *options, *more) == 0
    expected, *found = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    for row in found:
        for name in ("train_loss", "full_loss", "valid_loss", "param_norm"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-6)
