"""Inspecting a pickle without executing anything in it.

``Inspector`` reads a pickle with a stand-in for every class and function. Nothing is imported or called, and no tensor
is created. The result shows the containers in the file and their parts, and how many values the tensors have.
"""

import math
import pickle
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar

import torch

MAX_DEPTH = 64
"""Levels of containers inside containers, and dimensions of tensors."""
MAX_TUPLE = 10**5
"""Items of a tuple and of the tuples inside it."""

STAND_INS = re.compile(
    r"(omegaconf|torch\.optim|numpy|argparse|pathlib)\..*|typing\.Any"
    r"|builtins\.(int|float|str|bool|bytes|list|dict|tuple)"
)
"""Classes and functions that often accompany weights; nothing of them is read."""
_PLAIN = re.compile(
    r"_codecs\.encode|builtins\.(set|complex|bytearray)|torch\.(Size|device)"
    r"|torch\.(storage\.)?\w+Storage|torch\.serialization\._get_layout"
)
_TENSOR = re.compile(r"torch\._utils\._rebuild_tensor(_v2|_v3)?")
_PARAMETER = "torch._utils._rebuild_parameter"
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a meta tensor, which has no values",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass of torch.Tensor",
    "torch._tensor._rebuild_from_type_v2": "a tensor of a subclass of torch.Tensor",
    "torch._utils._rebuild_parameter_with_state": "a parameter with attributes of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a device that PyTorch does not support itself",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of a device that PyTorch does not support itself",
}
_TUPLES = b"".join((pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3))
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""The first object in a file of PyTorch before 1.6."""


class StandIn:
    """Stands for a class, an object of it or the result of a function; accepts any arguments, items and state."""

    name: ClassVar[str] = ""
    """Name of the class or function."""
    problem: ClassVar[str] = ""
    """Why such an object cannot be read."""
    values = 0
    """Number of values of a tensor."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __call__(self, *_: Any) -> "StandIn":
        """Return what stands for the result of a function that is itself a result."""
        return self

    def __setstate__(self, _: Any) -> None:
        if _TENSOR.fullmatch(self.name):
            raise ValueError("a tensor that is changed afterwards")

    def __setitem__(self, _: Any, __: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Ignore an item of a list."""


class _Items(dict[Any, Any]):
    """A dictionary of another class; its only attribute may be that of state dicts."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*(items for items in arguments if isinstance(items, dict | list)))

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() - {"_metadata"}:
            raise ValueError("a dictionary with attributes")


class _Tuple(tuple[Any, ...]):
    """A tuple that is not too deep to be hashed, which would end the process."""

    def __init__(self, _: Any) -> None:
        inside = [part for part in self if isinstance(part, _Tuple)]
        self.depth: int = 1 + max((part.depth for part in inside), default=0)
        self.size: int = len(self) + sum(part.size for part in inside)
        if self.depth > MAX_DEPTH or self.size > MAX_TUPLE:
            raise ValueError("tuples are nested too deeply or too long")


def _bounded(load: Callable[[Any], None]) -> Callable[[Any], None]:
    """Return the handler of an operation that makes a tuple, with the checks of ``_Tuple``."""

    def handle(self: Any) -> None:
        load(self)
        self.stack[-1] = _Tuple(self.stack[-1])

    return handle


class Inspector(pickle._Unpickler):
    """Reads the structure of a pickle.

    The base class is the unpickler in Python. A pickle of a few bytes can make that in C allocate any amount of memory.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        code: _bounded(load) if code in _TUPLES else load for code, load in pickle._Unpickler.dispatch.items()
    }

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.names: set[str] = set()
        """Names of all classes and functions."""
        self.refused: set[str] = set()
        """Those that can neither be read nor be replaced by ``StandIn``."""
        self.copied = 0
        """Number of items that functions copy."""
        self.storages: list[tuple[str, int]] = []
        """Key and number of bytes of the storages that tensors refer to."""
        self._classes: dict[str, type] = {}

    def load_legacy(self) -> Any:
        """Read the pickle in a file of PyTorch before 1.6, which follows three others."""
        if self.load() != _LEGACY_MAGIC:
            raise ValueError("a pickle that torch.save did not write")
        return [self.load() for _ in range(3)][-1]

    def find_class(self, module: str, name: str) -> Any:
        """Return a stand-in for a class or a function."""
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))  # of Python 2
        name = f"{module}.{name}"
        self.names.add(name)
        if name not in self._classes:
            self._classes[name] = self._stand_in(name)
        return self._classes[name]

    def persistent_load(self, pid: Any) -> Any:
        """Return a stand-in for a storage."""
        kind, key, number = pid[1].name.rpartition(".")[2], pid[2], pid[4]
        if not isinstance(key, str) or not isinstance(number, int):
            raise ValueError("a storage without a key or a size")
        dtype = torch.uint8 if kind == "UntypedStorage" else vars(torch)[kind].dtype
        self.storages.append((key, number * dtype.itemsize))
        return StandIn()

    def _stand_in(self, name: str) -> type:
        """Return a stand-in for a class or a function, which adds to ``copied`` what the real one would allocate."""
        if name in ("collections.OrderedDict", "collections.defaultdict", "collections.Counter"):
            return _Items
        is_dtype = name.startswith("torch.") and isinstance(vars(torch).get(name[len("torch.") :]), torch.dtype)
        problem = _OTHER_TENSORS.get(name, "")
        is_readable = is_dtype or name == _PARAMETER or any(p.fullmatch(name) for p in (STAND_INS, _PLAIN, _TENSOR))
        if not is_readable and not problem:
            problem = f"of the class {shorten(name)}"
            self.refused.add(name)

        def construct(cls: type[StandIn], *args: Any, **_: Any) -> Any:
            if name == _PARAMETER:
                return args[0]
            if _PLAIN.fullmatch(name):
                self.copied += sum(abs(n) if isinstance(n, int) else len(n) for n in args if not isinstance(n, float))
            made = object.__new__(cls)
            if _TENSOR.fullmatch(name):
                made.values = math.prod(map(abs, args[2][:MAX_DEPTH]))
            return made

        return type("_StandIn", (StandIn,), {"__new__": construct, "problem": problem, "name": name})


def walk(content: Any, limit: float = math.inf) -> Iterator[tuple[str, Any]]:
    """Yield (name, part) for the parts of nested containers that are no containers; names are joined by dots.

    Raises ``ValueError`` where there are more than ``limit`` parts, as in containers that contain themselves, or more
    than 64 levels.
    """
    stack: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while stack:
        where, part = stack.pop()
        limit -= 1
        if limit < 0 or len(where) > MAX_DEPTH:
            raise ValueError("containers are nested too deeply or contain themselves")
        if isinstance(part, Mapping | list | tuple | set):
            pairs = part.items() if isinstance(part, Mapping) else enumerate(part)
            stack += [((*where, key), value) for key, value in pairs]
        else:
            yield ".".join(map(shorten, where)), part


def shorten(value: object, length: int = 120) -> str:
    """Return the first line of a text from a file, printable and cut to ``length`` characters."""
    line = next(iter(str(value).splitlines()), "") or type(value).__name__
    line = line if line.isprintable() else ascii(line)[1:-1]
    return line if len(line) <= length else f"{line[:length]}..."
