"""The house: imports point downward, functions fit a screen, heavy modules load where they are used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from composing import CONFIG, ROOT

PACKAGE = ROOT / "fullbatch"
LAYERS = [
    {"typing", "tensors", "randomness"},
    {"objective", "transforms", "optim"},
    {"data", "models", "runtime"},
    {"training", "analysis", "landscape", "results"},
    {
        *(
            "settings",
            "config",
            "build",
            "build_analysis",
            "build_data",
            "build_database",
            "build_optimizer",
            "build_speed",
            "entry",
            "launch",
            "page",
            "provenance",
            "report",
            "job",
            "processes",
            "follow",
            "plan",
            "restore",
            "status",
            "verify",
        ),
        *("floating_point", "command_line", "build_landscape", "crunch"),
    },
]
MAY_IMPORT_OMEGACONF = {
    "fullbatch/settings/parse.py",
    *(
        f"fullbatch/{name}.py" for name in ("launch", "verify", "floating_point", "crunch")
    ),  # take the DictConfig from Hydra
    "fullbatch/app/hydra_cli.py",  # says what composing refused
}
HEAVY = {"matplotlib", "plotly", "sklearn", "tensorboard", "torchvision", "trackio", "wandb", "PIL"}
MAX_LINES_OF_A_FUNCTION, MAX_LINES_OF_A_FILE, MAX_LINES_OF_A_SCRIPT = 40, 290, 40

FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if name in rooms)


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def identity(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_imports_point_downward(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name in imports(tree):
        top, *rest = name.split(".")
        if top == "fullbatch" and rest and rest[0] != "__version__":
            assert layer(rest[0]) <= layer(room(path)), f"{identity(path)} imports {name}"
        if top == "omegaconf":
            assert identity(path) in MAY_IMPORT_OMEGACONF
        if room(path) in LAYERS[1]:
            assert top in {*sys.stdlib_module_names, "torch", "fullbatch"}, "mathematics needs torch only"


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_heavy_modules_are_imported_where_they_are_used(path: Path) -> None:
    top_level = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if not isinstance(node, ast.If)]
    for node in top_level:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not {name.split(".")[0] for name in imports(node)} & HEAVY


@pytest.mark.parametrize("path", [*FILES, *SCRIPTS], ids=identity)
def test_functions_and_files_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    limit = MAX_LINES_OF_A_SCRIPT if path in SCRIPTS else MAX_LINES_OF_A_FILE
    assert len(text.splitlines()) <= limit
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            lines = (node.end_lineno or 0) - first.lineno + 1
            assert lines <= MAX_LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=identity)
def test_nothing_prints(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print"


def test_showing_the_configuration_does_not_import_torch() -> None:
    code = f"""
import runpy, sys
sys.argv = ["x", "--cfg", "job", "hyp=gradreg"]
try:
    runpy.run_path({str(ROOT / "train_with_gradient_descent.py")!r}, run_name="__main__")
except SystemExit:
    pass
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "block_strength: 0.5" in shown


@pytest.mark.slow
def test_the_package_itself_does_not_import_torch() -> None:
    code = "import fullbatch, sys; assert 'torch' not in sys.modules; assert fullbatch.GradRegularizer"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_exported_name_exists() -> None:
    import fullbatch

    for name in fullbatch.__all__:
        assert getattr(fullbatch, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        fullbatch.nonsense  # noqa: B018


def test_every_configuration_file_says_what_it_is() -> None:
    for path in CONFIG.rglob("*.yaml"):
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("#") or path.stem == "none", path
