"""Every optimizer with every search and every wrapper runs, or is refused with the reason."""

from typing import Any

import pytest
import torch
from cases import build
from composing import CONFIG, composed
from fixed_blocks import fixed_step

from fullbatch.build.optimizer import MODIFICATIONS, OPTIMIZERS, STEP_RULES, build_optimizer
from fullbatch.optim.agc import AdaptivelyClippedDescent
from fullbatch.settings.parse import parse

LINE_SEARCHES = {
    "gd": ["none", "wolfe", "non-monotone", "restarting"],
    "lbfgs": ["Wolfe", "Armijo"],
}
NAMES = ["gd", "adam", "fista", "gd_agc", "gd_clip", "lbfgs"]
CHOICES = [(optim, search) for optim in NAMES for search in LINE_SEARCHES.get(optim, [""])]
WRAPPERS = ["none", "LARS", "LARC", "SAM", "ASAM"]
LOOKING = ("wolfe", "non-monotone", "armijo")


def reason(optim: str, search: str, wrapper: str) -> str | None:
    if wrapper.endswith("SAM") and search.lower() in LOOKING:
        return f"hyp/optim_modification={wrapper}: not with hyp/optim={optim} .*{search.lower()}, which searches"
    if wrapper.startswith("LAR") and optim == "lbfgs":
        return f"hyp/optim_modification={wrapper}: not with hyp/optim=lbfgs, whose curvature pairs"
    return None


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(("optim", "search"), CHOICES)
def test_every_combination_trains_or_is_refused_with_a_reason(optim: str, search: str, wrapper: str) -> None:
    overrides = [f"hyp/optim={optim}", f"hyp/optim_modification={wrapper}", "hyp=fb1"]
    cfg = composed(*overrides, *([f"hyp.optim.line_search={search}"] if search else []))
    if (message := reason(optim, search, wrapper)) is not None:
        with pytest.raises(ValueError, match=message):
            parse(cfg)
        return
    model = build("tanh")
    optimizer = build_optimizer(parse(cfg).hyp, model)
    step = fixed_step(model, optimizer)
    losses = [step(number, stochastic=False)["full_loss"] for number in range(12)]
    assert min(losses[6:]) < losses[0]
    step(12, stochastic=True)


def test_files_tables_and_tests_name_the_same_optimizers() -> None:
    files = {path.stem for path in (CONFIG / "hyp/optim").glob("*.yaml")}
    assert files - {"torch", "import"} == set(NAMES) == set(OPTIMIZERS)
    files = {path.stem for path in (CONFIG / "hyp/optim_modification").glob("*.yaml")}
    assert files == set(WRAPPERS)
    assert {name.lower() for name in files} == set(MODIFICATIONS)
    assert {"none", *filter(None, STEP_RULES)} == set(LINE_SEARCHES["gd"])


def test_the_documented_defaults() -> None:
    def optim(name: str) -> Any:
        return parse(composed(f"hyp/optim={name}")).hyp.optim

    gd = optim("gd")
    assert (gd.lr, gd.momentum, gd.weight_decay, gd.dampening, gd.nesterov) == (0.1, 0.9, 5e-4, 0, True)
    assert gd.line_search is None
    assert (gd.c1, gd.c2, gd.alpha_max, gd.max_iter, gd.interval, gd.factor) == (1e-4, 0.9, 10, 10, 10, 0.25)
    fista = optim("fista")
    assert (fista.lr, fista.fista_mod, fista.projection, fista.restart) == (0.1, (1, 1, 4), None, False)
    agc = optim("gd_agc")
    assert (agc.lr, agc.momentum, agc.weight_decay, agc.dampening, agc.nesterov) == (1.6, 0.9, 2e-5, 0, True)
    assert (agc.clipping, agc.eps) == (0.01, 1e-3)
    clip = optim("gd_clip")
    assert (clip.lr, clip.momentum, clip.weight_decay, clip.dampening, clip.nesterov) == (0.1, 0.9, 5e-4, 0, True)
    assert (clip.interval, clip.norm_type) == (10, 2)
    lbfgs = optim("lbfgs")
    assert (lbfgs.lr, lbfgs.weight_decay, lbfgs.history_size, lbfgs.line_search) == (1.0, 5e-4, 10, "wolfe")
    assert (lbfgs.eps, lbfgs.damping, lbfgs.eta, lbfgs.c1, lbfgs.c2) == (1e-2, True, 2, 1e-4, 0.9)
    assert lbfgs.max_linesearches == 10
    wrappers: dict[str, Any] = {
        name: parse(composed(f"hyp/optim_modification={name}")).hyp.optim_modification for name in WRAPPERS
    }
    assert (wrappers["LARS"].trust_coefficient, wrappers["LARC"].eps) == (0.02, 1e-8)
    assert (wrappers["SAM"].rho, wrappers["ASAM"].rho, wrappers["ASAM"].eta) == (0.05, 0.5, 0.01)


def test_settings_reach_the_optimizers() -> None:
    def built(*overrides: str) -> Any:
        return build_optimizer(parse(composed("hyp=fb1", *overrides)).hyp, build("tanh"))

    wolfe = built(
        "hyp.optim.line_search=wolfe", "hyp.optim.c1=0.1", "hyp.optim.c2=0.2", "hyp.optim.alpha_max=3"
    ).step_rule
    assert (wolfe.c1, wolfe.c2, wolfe.alpha_max, wolfe.max_iter) == (0.1, 0.2, 3, 10)
    relaxed = built("hyp.optim.line_search=Non-Monotone", "hyp.optim.interval=3", "hyp.optim.factor=0.5").step_rule
    assert (relaxed.c1, relaxed.interval, relaxed.factor, relaxed.max_iter) == (1e-4, 3, 0.5, 10)
    armijo = built("hyp/optim=lbfgs", "hyp.optim.line_search=armijo", "hyp.optim.eta=4", "hyp.optim.history_size=7")
    assert (armijo.step_rule.factor, armijo.step_rule.interval, armijo.history_size, armijo.damping) == (
        0.25,
        1,
        7,
        True,
    )
    clip = built("hyp/optim=gd_clip", "hyp.optim.norm_type=inf", "hyp.optim.interval=4")
    assert (clip.norm_type, clip.interval) == (float("inf"), 4)
    larc = built("hyp/optim_modification=LARC", "hyp.optim_modification.trust_coefficient=0.1")
    assert (larc.clip, larc.trust_coefficient, larc.eps) == (True, 0.1, 1e-8)
    asam = built("hyp/optim_modification=ASAM", "hyp.optim_modification.eta=0.2", "hyp/optim=fista")
    assert (asam.rho, asam.eta, asam.base.projection) == (0.5, 0.2, None)


@pytest.mark.parametrize("only_linear_layers", [False, True])
def test_agc_exempts_parameters_whose_name_starts_with_linear(only_linear_layers: bool) -> None:
    model = torch.nn.Sequential()
    model.add_module("conv", torch.nn.Conv2d(1, 1, 1))
    model.add_module("linear", torch.nn.Linear(2, 2))
    cfg = composed("hyp/optim=gd_agc", f"hyp.only_linear_layers_weight_decay={only_linear_layers}")
    optimizer = build_optimizer(parse(cfg).hyp, model)
    assert isinstance(optimizer, AdaptivelyClippedDescent)
    names = {parameter: name for name, parameter in model.named_parameters()}
    settings = {names[p]: (g["clipping"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    bias_decay = 0.0 if only_linear_layers else 2e-5
    assert settings == {
        "conv.weight": (0.01, 2e-5),
        "conv.bias": (0.01, bias_decay),
        "linear.weight": (None, 2e-5),
        "linear.bias": (None, bias_decay),
    }
