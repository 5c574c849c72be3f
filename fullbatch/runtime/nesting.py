"""The size of nested containers in which one part may occur many times, such as through the aliases of YAML."""

from collections.abc import Mapping
from typing import Any

MAX_ENTRIES = 100_000
"""Largest number of entries of a configuration; those of this package have some hundred."""


class BadConfigurationError(ValueError):
    """A file or its content is no configuration."""


def require_bounded(content: Any, name: object) -> None:
    """Raise ``BadConfigurationError`` where a configuration has too many entries, counting each as often as it occurs.

    Args:
        content: nested containers, or nodes of YAML.
        name: of the file, for the message.
    """
    try:
        too_many = _num_entries(content, {}) > MAX_ENTRIES
    except RecursionError:
        too_many = True
    if too_many:
        raise BadConfigurationError(
            f"{name}: not a configuration (more than {MAX_ENTRIES:,} entries, or nested too deeply)"
        )


def _num_entries(node: Any, counted: dict[int, int]) -> int:
    if id(node) not in counted:
        counted[id(node)] = MAX_ENTRIES  # until its parts are counted, of which it may be one
        parts: Any = getattr(node, "value", node)  # nodes of YAML have one
        parts = parts.values() if isinstance(parts, Mapping) else parts if isinstance(parts, list | tuple) else ()
        counted[id(node)] = 1 + sum(_num_entries(part, counted) for part in parts)
    return counted[id(node)]
