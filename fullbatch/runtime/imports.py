"""Objects of the user's own code: they are imported by name, and errors inside that code are shown with their place."""

import difflib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def import_object(key: str, target: str) -> Any:
    """Return the object ``package.module:name``; the current folder is searched last.

    Args:
        key: the setting that names the target, for messages.
        target: ``package.module:name``, where ``name`` may have dots.

    Raises:
        ValueError: there is no such module or object, or importing it failed.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *attribute.split(".")]):
        raise ValueError(f"{key}={target}: should be package.module:callable, such as my_code:build")
    with launch_folder_importable():
        try:
            value: Any = importlib.import_module(module_name)
        except Exception as error:
            raise ValueError(f"{key}={target}: importing {module_name} failed: {describe_error(error)}") from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            names = [name for name in dir(value) if not name.startswith("_")]
            raise ValueError(f"{key}={target}: {module_name} has no {attribute}{suggestion(part, names)}")
        value = getattr(value, part)
    return value


def call_user_code(key: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of the user; ``ValueError`` names the arguments it does not take, or where it failed."""
    name = getattr(function, "__qualname__", type(function).__name__)
    check_arguments(key, function, len(arguments), options)
    with launch_folder_importable():
        try:
            return function(*arguments, **options)
        except Exception as error:
            raise ValueError(f"{key}: {name} failed: {describe_error(error)}") from error


def check_arguments(key: str, function: Callable[..., Any], num_positional: int, options: dict[str, Any]) -> None:
    """Raise ``ValueError`` for arguments that are not in the signature of a function, or that it needs besides."""
    name = getattr(function, "__qualname__", type(function).__name__)
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some functions written in C
        return
    parameters = list(signature.parameters.values())[num_positional:]
    accepted = f"accepted: {', '.join(map(str, parameters)) or 'no arguments'}"
    for option in options:
        if not takes(function, option):
            similar = suggestion(option, [parameter.name for parameter in parameters])
            raise ValueError(f"{key}: {name}() takes no argument {option}{similar}; {accepted}")
    try:
        signature.bind(*range(num_positional), **options)
    except TypeError as error:
        raise ValueError(f"{key}: {name}() {error}; {accepted}") from None


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Return whether a function has a parameter of this name, or takes any keyword argument."""
    parameters = inspect.signature(function).parameters
    return argument in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def describe_error(error: BaseException) -> str:
    """Return type and message of an error of the user's code, and the line of code that raised it."""
    message = (str(error).strip() or "no message").splitlines()[0]
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {message}"
    machinery = ("<frozen", __file__, importlib.__file__)
    own = [frame for frame in frames if not frame.filename.startswith(machinery)]
    place = f" ({own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: {own[-1].line})" if own else ""
    return f"{type(error).__name__}: {message}{place}"


def suggestion(name: str, names: list[str]) -> str:
    """Return the names similar to ``name`` as the end of a message; empty where there is none."""
    similar = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(similar)}" if similar else ""


@contextmanager
def launch_folder_importable() -> Iterator[None]:
    """Append the current folder to the module search path inside the context."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
