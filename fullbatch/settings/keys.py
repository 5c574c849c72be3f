"""The keys of the settings: which there are, which are texts, and which one a mistyped one was to be."""

from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from pydantic import Tag

from fullbatch.settings import Run

GROUPS = (
    *("data.db", "hyp.optim", "hyp.optim_modification", "impl.setup"),
    *("data", "model", "hyp", "impl", "analysis", "viz"),
)
REMOVED = {
    "impl.blocks_in_flight": "blocks are evaluated one after the other",
    "impl.cuda_graphs": "use impl.compile=reduce-overhead, which records CUDA graphs",
}
"""Keys of earlier versions -> what takes their place."""

NEAR = 0.7
"""Similarity from which a name is suggested."""


class Key(NamedTuple):
    """A key of the settings, or a group of them.

    Args:
        name: dotted.
        types: its type, or those in a union.
        option: the model, optimizer, ... that has the key; blank for keys that are always there.
    """

    name: str
    types: tuple[Any, ...]
    option: str

    @property
    def is_text(self) -> bool:
        """Whether values are text, such as a name or a path."""
        return str in self.types and int not in self.types

    @property
    def is_list_of_texts(self) -> bool:
        """Whether values may be lists of text."""
        return any(get_origin(kind) is list for kind in self.types)

    @property
    def may_be_blank(self) -> bool:
        """Whether None is a value."""
        return NoneType in self.types


@cache
def all_keys() -> tuple[Key, ...]:
    """Return all keys and groups of the settings; those of several options several times."""
    return tuple(_keys_of(Run, "", ""))


def describe_unknown_key(key: str) -> str:
    """Return one line for a key that does not exist, with the nearest ones, or what is known about it."""
    if key in REMOVED:
        return f"{key}: removed; {REMOVED[key]}"
    options = [known.option for known in all_keys() if known.name == key and known.option]
    if options:
        group = next(group for group in GROUPS if key.startswith(f"{group}."))
        owners = ", ".join(dict.fromkeys(options))
        return f"{key}: there is no such key in the chosen {group.replace('.', '/')}, only in {owners}"
    existing = {
        known.name: known.name.replace(".", "/") if known.name in GROUPS else known.name for known in all_keys()
    }
    if key in existing:
        return f"{key}: cannot be set, because {key.rpartition('.')[0]} is not a group of settings here"
    names = [name for dotted, name in existing.items() if not key.startswith(f"{dotted}.")]  # the groups that it is in
    return f"{key}: {did_you_mean(key, names) or 'there is no such key'}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return the question for the at most three of the ``known`` names that are nearest to ``given``; blank for none.

    Near are names whose last parts differ in few letters; of these, those whose other parts do.
    """
    names = {name: _similarity(given.replace("/", ".").lower(), name.replace("/", ".").lower()) for name in known}
    near = sorted((name for name, (last, _) in names.items() if last >= NEAR), key=lambda name: names[name])[:-4:-1]
    return f"did you mean {' or '.join(filter(None, [', '.join(near[:-1]), near[-1]]))}?" if near else ""


def _similarity(one: str, other: str) -> tuple[float, float]:
    """Return the similarities, up to 1, of the last parts and of the whole names."""
    parts = (one.rpartition(".")[2], other.rpartition(".")[2]), (one, other)
    last, whole = (SequenceMatcher(None, *pair).ratio() for pair in parts)
    return last, whole


def _keys_of(settings: type, prefix: str, option: str) -> Iterator[Key]:
    for field in fields(settings):
        name = f"{prefix}{field.name}"
        options = list(_options(get_type_hints(settings, include_extras=True)[field.name], option))
        yield Key(name, tuple(kind for kind, _ in options), option)
        for kind, tag in options:
            if is_dataclass(kind):
                yield from _keys_of(kind, f"{name}.", tag)  # type: ignore[arg-type]  # a class, not an instance


def _options(annotation: Any, tag: str) -> Iterator[tuple[Any, str]]:
    """Yield the types in an annotation, and the tag of each in its union."""
    if get_origin(annotation) is Annotated:
        kind, *metadata = get_args(annotation)
        tags = [item.tag for item in metadata if isinstance(item, Tag)]
        yield from _options(kind, tags[0] if tags else tag)
    elif get_origin(annotation) in (Union, UnionType):
        for kind in get_args(annotation):
            yield from _options(kind, tag)
    else:
        yield annotation, tag
