"""Manifests: plain JSON that says what stored results are a function of."""

from typing import Any

Manifest = dict[str, Any]


def differences(stored: Any, given: Any, key: str = "") -> list[str]:
    """Return 'key: stored there, given here' for each entry in which two manifests differ."""
    if isinstance(stored, dict) and isinstance(given, dict):
        return [
            line
            for name in dict.fromkeys([*stored, *given])
            for line in differences(stored.get(name), given.get(name), f"{key}.{name}" if key else str(name))
        ]
    return [] if stored == given else [f"{key}: {stored} there, {given} here"]
