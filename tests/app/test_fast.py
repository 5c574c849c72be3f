"""`impl=fast` and reduced precision: what `auto` chooses on machines with and without fast bfloat16."""

from pathlib import Path

import pytest
import torch
from composing import composed
from running import SMALL, rows_of, run_in_process

from fullbatch.build import precision
from fullbatch.build.problem import build_problem, set_up_machine
from fullbatch.runtime import device as devices
from fullbatch.runtime.device import has_fast_bfloat16
from fullbatch.settings.parse import parse

CPU = torch.device("cpu")
EXACT = "hyp.grad_reg.implementation=forward-over-reverse"


@pytest.mark.parametrize(
    ("overrides", "supported", "expected"),
    [
        (["impl=fast"], True, torch.bfloat16),
        (["impl=fast"], False, False),
        (["impl=fast", "impl.dtype=double"], True, False),
        (["impl=fast", "hyp=gradreg"], True, False),  # differences of gradients
        (["impl=fast", "hyp=gradreg", EXACT], True, torch.bfloat16),
        (["impl=fast", "impl.mixed_precision=True", "hyp=gradreg"], False, torch.bfloat16),  # as requested
        ([], True, False),
        (["impl.mixed_precision=BFloat16"], False, torch.bfloat16),
        (["impl.mixed_precision=float16", "hyp=gradreg"], False, torch.float16),
    ],
)
def test_auto_is_bfloat16_if_it_is_fast_and_no_gradients_are_subtracted(
    monkeypatch: pytest.MonkeyPatch, overrides: list[str], supported: bool, expected: object
) -> None:
    monkeypatch.setattr(precision, "has_fast_bfloat16", lambda device: supported)
    assert precision.build_arithmetic(parse(composed(*overrides)), CPU).autocast == expected


def test_bfloat16_is_fast_on_processors_with_instructions_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True}, raising=False)
        assert has_fast_bfloat16(CPU)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert not has_fast_bfloat16(CPU)
    monkeypatch.delattr(torch.cpu, "get_capabilities")  # older than PyTorch 2.10
    assert not has_fast_bfloat16(CPU)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [([], "ieee"), (["impl=fast"], "tf32"), (["impl=fast", "hyp=gradreg"], "ieee"), (["impl.tf32=True"], "tf32")],
)
def test_tf32_is_used_only_on_request(overrides: list[str], expected: str) -> None:
    before = [backend.fp32_precision for backend in devices._tf32_backends()]
    try:
        set_up_machine(parse(composed("impl.threads=1", *overrides)))
        assert [backend.fp32_precision for backend in devices._tf32_backends()] == [expected, expected]
    finally:
        for backend, value in zip(devices._tf32_backends(), before, strict=True):
            backend.fp32_precision = value


def test_a_fast_run_records_its_speed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", "hyp.steps=2", "impl=fast") == 0
    (run,) = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    assert float(run["samples_per_second"]) == pytest.approx(60 * 2 / (2 * float(run["avg_step_time"])))


def test_compiled_models_have_no_second_derivative(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process(monkeypatch, tmp_path, *SMALL, "impl.compile=True", EXACT) == 2
    assert "impl.compile=True: not with hyp.grad_reg.implementation=forward-over-reverse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scaling", "expected"), [("False", 1.0), ("True", 1024.0), ("256", 256.0), ("1", 1.0), ("0.5", 0.5)]
)
def test_losses_are_scaled_by_the_setting(scaling: str, expected: float) -> None:
    run = parse(composed(*SMALL, "hyp=gradreg", "impl.mixed_precision=float16", f"impl.grad_scaling={scaling}"))
    arithmetic = build_problem(run, seed=0).objective.arithmetic
    assert (arithmetic.autocast, arithmetic.loss_scale) == (torch.float16, expected)


@pytest.mark.slow
def test_training_in_float16(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It learns like float32; overflow and underflow are reported."""
    float16 = ["impl.mixed_precision=float16", "impl.grad_scaling=True"]
    for options in ([], float16):
        assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", "hyp.steps=2", *options) == 0
    in_float32, in_float16 = (
        float(row["train_loss"]) for row in rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    )
    assert in_float16 != in_float32
    assert in_float16 == pytest.approx(in_float32, rel=1e-2)
    assert "float16" not in capsys.readouterr().err
    status = run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=fb1", *float16, f"impl.grad_scaling={2**60}")
    assert status == 3
    assert "float16 gradients overflow above 65504: try a smaller impl.grad_scaling" in capsys.readouterr().err
    assert run_in_process(monkeypatch, tmp_path, *SMALL, "hyp=gradreg", float16[0], "dryrun=True") == 0
    shown = capsys.readouterr().err
    assert "gradients below 6e-8 become 0; impl.grad_scaling=True keeps them" in shown
    assert "differences of float16 gradients magnify its rounding" in shown


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options", [("hyp=fb1",), ("hyp=fb1", "hyp/optim=adam"), ("hyp=gradreg", "hyp.warmup=1")], ids=str
)
def test_a_gpu_trains_like_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: tuple[str, ...]) -> None:
    for machine in (["impl.device=cpu"], ["impl.device=cuda"], ["impl.device=cuda", "impl.compile=reduce-overhead"]):
        more = ["data.batch_size=8", "hyp.steps=3", "impl.dtype=double", *machine]
        assert run_in_process(monkeypatch, tmp_path, *SMALL, *options, *more) == 0
    expected, *rows = rows_of(tmp_path / "tables" / "table_fb_digits_runs.csv")
    for row in rows:
        for name in ("train_loss", "full_loss", "valid_loss", "param_norm"):
            assert float(row[name]) == pytest.approx(float(expected[name]), rel=1e-6)
