"""The architecture of the package: layers, sizes and words, each rule in one loop over its files."""

import ast
import io
import re
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import CONFIG, ROOT, settings_for
from running import SMALL

from fullbatch.build.trainer import build_training
from fullbatch.models.inspection import Inspector, StandIn

PACKAGE = ROOT / "fullbatch"
LAYERS = [
    {"typing", "tensors", "randomness"},
    {"objective", "transforms", "optim"},
    {"data", "models", "runtime"},
    {"training", "analysis", "landscape", "results"},
    {"settings", "build"},
    {"app", "cli"},
    {"__init__", "__main__"},
]
"""Rooms and modules of the package's root; each imports from its own layer and those above it in this list."""
HEAVY = {"matplotlib", "plotly", "sklearn", "tensorboard", "torchvision", "trackio", "wandb", "PIL"}
MAX_LINES = {"function": 40, "file": 290, "script": 15}
MAX_PARAMETERS = dict.fromkeys(("BlockLoader", "FullBatchObjective", "Trainer", "Step"), 9)
MAX_SMALL_HELPERS = 3.0
"""Private functions of at most six lines with one caller, for each 1,000 lines of the package."""
MAX_FRAMES = 9
"""From ``Trainer.run`` to the function that calls ``torch.autograd.grad``, both included."""
AVOIDED_WORDS = re.compile(
    r"\b(data bases?|pictures?|(row|line) an? (step|run|image|point|evaluation|sample)|lifelines?|lost error|wish(es)?"
    r"|_?told|flights?|needless|replanned|followers?|good-?bye|colour|grey|normalise[ds]?)\b",
    re.IGNORECASE,
)
STORED_WORDS = re.compile('b"pictures"')
"""The name of a table in databases, older than the rule."""

TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
SCRIPTS = [path for path in sorted(ROOT.glob("*.py")) if path.stem not in ("hubconf", "setup")]
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in TREES}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer(path: Path) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if room(path) in rooms)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what is imported at any depth, except for what only type checkers import."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.dump(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for node in ast.iter_child_nodes(tree):
        yield from imports(node)


def imported_files(path: Path) -> set[Path]:
    files = set()
    for name in imports(TREES[path]):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]  # noqa: PLW2901
        if name and not (name == "fullbatch" and room(path) != "__init__"):
            files.add(MODULES[name])
    return files - {path}


def functions(tree: ast.AST) -> Iterator[tuple[Function, int]]:
    """Yield functions and their numbers of lines below the docstring."""
    for node in ast.walk(tree):
        if isinstance(node, Function):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            yield node, (node.end_lineno or 0) - first.lineno + 1


def classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_root_of_the_package_holds_the_vocabulary_alone() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == LAYERS[0] | LAYERS[-1]
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set().union(*LAYERS) - LAYERS[0] - LAYERS[-1]


def test_imports_point_downward() -> None:
    upward = {
        f"{short(path)} imports {short(other)}"
        for path in TREES
        for other in imported_files(path)
        if layer(other) > layer(path)
    }
    assert upward == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    """Imports inside functions included."""
    sorter = TopologicalSorter({short(path): map(short, imported_files(path)) for path in TREES})
    sorter.prepare()  # CycleError names the files


def test_only_the_boundary_knows_omegaconf_and_mathematics_needs_torch_alone() -> None:
    wrong = set()
    for path, tree in TREES.items():
        for top in {name.partition(".")[0] for name in imports(tree)}:
            if top == "omegaconf" and not (room(path) == "app" or short(path) == "fullbatch/settings/parse.py"):
                wrong.add(f"{short(path)} imports omegaconf")
            if room(path) in LAYERS[1] and top not in {*sys.stdlib_module_names, "torch", "fullbatch"}:
                wrong.add(f"{short(path)} imports {top}")
    assert wrong == set()


def test_heavy_modules_are_imported_where_they_are_used() -> None:
    wrong = {
        f"{short(path)}: {name}"
        for path, tree in TREES.items()
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in imports(node)
        if name.partition(".")[0] in HEAVY
    }
    assert wrong == set()


def test_functions_files_and_scripts_are_short() -> None:
    long = set()
    for path in (*TREES, *SCRIPTS):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MAX_LINES["script" if path in SCRIPTS else "file"]:
            long.add(f"{short(path)} has {lines} lines")
        tree = TREES.get(path) or ast.parse(path.read_text(encoding="utf-8"))
        long |= {f"{short(path)}: {f.name} has {n} lines" for f, n in functions(tree) if n > MAX_LINES["function"]}
    assert long == set()


def test_small_helpers_with_one_caller_are_few() -> None:
    nodes = [node for tree in TREES.values() for node in ast.walk(tree)]
    uses = Counter(node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load))
    uses.update(node.attr for node in nodes if isinstance(node, ast.Attribute))
    small = [
        f"{short(path)}: {function.name}"
        for path, tree in TREES.items()
        for function, lines in functions(tree)
        if re.match("_[^_]", function.name) and lines <= 6 and uses[function.name] <= 1 and not function.decorator_list
    ]
    total = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in TREES)
    assert 1000 * len(small) / total <= MAX_SMALL_HELPERS, small


def test_class_names_are_unique() -> None:
    """Outside of ``settings``, whose classes have the names of what they configure."""
    names = Counter(
        node.name for path, tree in TREES.items() if room(path) != "settings" for node in classes(tree)
        if not node.name.startswith("_")
    )  # fmt: skip
    assert [name for name, number in names.items() if number > 1] == []


def parameters(node: ast.ClassDef) -> int:
    """Return how many parameters the constructor has, or how many fields the dataclass."""
    for method in node.body:
        if isinstance(method, ast.FunctionDef) and method.name == "__init__":
            return len(method.args.args) + len(method.args.kwonlyargs) - 1
    return sum(
        isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith("_") for field in node.body
    )


def test_constructors_have_few_parameters() -> None:
    counts = {
        node.name: parameters(node) for tree in TREES.values() for node in classes(tree) if node.name in MAX_PARAMETERS
    }
    assert counts.keys() == MAX_PARAMETERS.keys()
    assert {name: number for name, number in counts.items() if number > MAX_PARAMETERS[name]} == {}


def test_nothing_prints() -> None:
    calls = ((path, node.func) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert [short(path) for path, called in calls if isinstance(called, ast.Name) and called.id == "print"] == []


def test_words_are_those_of_the_field() -> None:
    """Not those of earlier versions, nor British spelling; names in stored files are older than the rule."""
    texts = [*TREES, ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wrong = [
        f"{short(path)}:{number}: {match[0]}"
        for path in texts
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in AVOIDED_WORDS.finditer(STORED_WORDS.sub("", line))
    ]
    assert wrong == []


def test_few_calls_lie_between_the_trainer_and_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of the package; ``torch.optim`` puts two of its own around each optimizer."""
    gradient, stacks = torch.autograd.grad, []

    def recorded(*args: Any, **kwargs: Any) -> Any:
        codes = [frame.f_code for frame, _ in traceback.walk_stack(sys._getframe(1))]
        calls = [f"{Path(code.co_filename).stem}.{code.co_name}" for code in codes if str(PACKAGE) in code.co_filename]
        stacks.append(calls[: calls.index("trainer.run") + 1][::-1])
        return gradient(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", recorded)
    build_training(settings_for(*SMALL, "hyp.steps=1"), 1).trainer().run()
    assert max(map(len, stacks)) <= MAX_FRAMES, max(stacks, key=len)


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


def test_nothing_is_unpickled() -> None:
    """Neither from files, except by ``torch.load(weights_only=True)``, nor from other processes.

    ``Inspector`` looks at a pickle before ``torch.load``: it returns a stand-in for every class and function.
    """
    inspector = {"_Unpickler", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
    allowed = {f"fullbatch/models/inspection.py: pickle.{name}" for name in inspector}
    modules = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve"}
    collectives = re.compile(r"(broadcast|(all_)?gather|scatter|send|recv)_object(_list|s)?")
    wrong = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                wrong.add(f"{short(path)} imports from {node.module}")
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in modules and node.attr[-5:] != "Error":
                wrong.add(f"{short(path)}: {ast.unparse(node)}")
            if isinstance(node, ast.Attribute) and collectives.fullmatch(node.attr):
                wrong.add(f"{short(path)}: {node.attr}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("torch.load", "np.load", "numpy.load")):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                if not (options.get("weights_only") == "True" or options.get("allow_pickle") == "False"):
                    wrong.add(f"{short(path)}: {ast.unparse(node)}")
    assert wrong == allowed
    assert {"find_class", "persistent_load"} <= vars(Inspector).keys()
    assert issubclass(Inspector(io.BytesIO()).find_class("os", "system"), StandIn)
