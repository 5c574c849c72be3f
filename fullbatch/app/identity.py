"""The identity of a run: the settings that determine its numbers, and hashes of them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fullbatch.data.dataset import content_of_data
from fullbatch.results.ledger import JobDescription
from fullbatch.runtime.device import DTYPES
from fullbatch.runtime.manifests import differences
from fullbatch.settings import Run
from fullbatch.training.checkpoint import checkpoint_path

CHANGEABLE = {
    "data": ("caching", "download", "mirrors"),
    "data.db": (
        *("path", "rebuild_existing_database", "temporary_database", "write_frequency", "shuffle_while_writing"),
        *("max_readers", "readahead", "meminit", "max_spare_txns", "access"),
    ),
    "hyp": ("steps",),
}
"""Keys of data, model and hyp that do not determine the numbers of a step: where files are, how they are read, how
many steps there are. A run may change them, as all keys of other groups, and continue from its checkpoint."""

ADDED: dict[str, dict[str, Any]] = {
    "hyp": {"loss_target": None, "transforms": []},
    "model": {"weights": None, "args": {}},
    "analysis": {"probes": []},
}
"""Keys of later versions with their defaults, which are left out: earlier versions stored runs without them."""


@dataclass(frozen=True)
class RunIdentity:
    """What makes two runs the same one; checkpoints, the ledger, loggers and tables use it.

    Args:
        config: the groups data, model and hyp that checkpoints store, without keys that are ``CHANGEABLE``; those of
            ``data.db`` are stored, and ignored in comparisons.
        configuration: the hash of all that determines the numbers of the run except its seed: ``config``, the number
            of steps, the analysis and the arithmetic. Of ``impl`` nothing else is hashed: threads, device or memory
            format change numbers by rounding at most.
        name: of the run.
        seed: None until it is drawn.
        content: of the data, see ``content_of_data``: it stands for ``data.path`` in comparisons and hashes.
        parent: digest of the checkpoint that the run was forked from.
        former: the hash that earlier versions made of the configuration, with ``data.path`` as it was given.
    """

    config: dict[str, Any]
    configuration: str
    name: str
    seed: int | None
    content: str | None = None
    former: str = ""
    parent: str | None = None

    @classmethod
    def of(cls, run: Run, tree: Mapping[str, Any]) -> "RunIdentity":
        """Return the identity of a run; ``tree`` is the configuration that its settings were made from."""
        impl, hashed = run.impl, _significant(asdict(run))
        if isinstance(hashed["data"].get("db"), dict):
            hashed["data"]["db"] = _without(hashed["data"]["db"], "data.db")
        scaling = [impl.grad_scaling] if impl.grad_scaling else []
        arithmetic = [str(DTYPES[impl.dtype]), str(DTYPES[impl.accumulation_dtype]), impl.mixed_precision, *scaling]
        former, content = hashed, content_of_data(run.data.name, run.data.path)
        if content is not None and run.data.path is not None:
            # of official data sets, the hash is that of their default place, as it always was
            default = None if run.data.name.lower() == "digits" else "~/data"
            hashed = {**hashed, "data": {**hashed["data"], "path": content or default}}
        parent = None if impl.checkpoint.fork_from is None else _digest(checkpoint_path(impl.checkpoint.fork_from))
        forked = [] if parent is None else [parent]
        configuration, old = (
            content_hash([groups, run.hyp.steps, _without(vars(run.analysis), "analysis"), arithmetic, *forked])
            for groups in (hashed, former)
        )
        return cls(_significant(tree), configuration, run.name, run.seed, content, old, parent)

    def as_recorded(self, attempts: Sequence[JobDescription]) -> "RunIdentity":
        """Return the identity with the hash of earlier versions where these attempts have it."""
        if all(attempt.configuration != self.former for attempt in attempts):
            return self
        return replace(self, configuration=self.former)

    @property
    def job(self) -> str:
        """The hash of configuration, name and seed; runs that have it in common have the same numbers."""
        return content_hash([self.configuration, self.name, self.seed])

    def mismatches(self, checkpoint: Mapping[str, Any]) -> list[str]:
        """Return 'key: stored there, given here' for each entry in which a checkpoint is that of another run."""
        ignored = tuple(f"data.db.{key}:" for key in CHANGEABLE["data.db"])
        content, data = checkpoint.get("content"), checkpoint["config"].get("data")
        place = data.get("path") if isinstance(data, dict) else None
        if self.content is not None and content is not None:
            ignored += ("data.path:",)
        elif self.content == "" or _same_place(place, self.config.get("data", {}).get("path")):
            ignored += ("data.path:",)
            content = self.content
        lines = [line for line in differences(checkpoint["config"], self.config) if not line.startswith(ignored)]
        parent = checkpoint.get("parent")
        if (parent.get("digest") if isinstance(parent, dict) else None) != self.parent:
            lines.append("impl.checkpoint.fork_from: another parent there than here")
        if content not in (None, self.content):
            lines.append("data.path: other images there than here")
        if self.seed not in (None, checkpoint["seed"]):
            lines.append(f"seed: {checkpoint['seed']} there, {self.seed} here")
        return lines


def content_hash(content: Any) -> str:
    """Return 12 hexadecimal digits (48 bits) of the SHA-256 of plain containers, independent of the order of keys."""
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _same_place(first: Any, second: Any) -> bool:
    if not isinstance(first, str) or not isinstance(second, str):
        return bool(first == second)
    return os.path.realpath(os.path.expanduser(first)) == os.path.realpath(os.path.expanduser(second))


def _significant(tree: Mapping[str, Any]) -> dict[str, Any]:
    groups = {group: _without(tree[group], group) for group in ("data", "model", "hyp")}
    if weights := groups["model"].get("weights"):  # wherever the file lies
        groups["model"]["weights"] = _digest(Path(weights))
    return groups


def _digest(path: Path) -> str:
    """Return a string that is equal only for files of equal content."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def _without(settings: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a group that make a difference, without those of later versions at their defaults."""
    added = ADDED.get(group, {})
    return {
        key: value
        for key, value in settings.items()
        if key not in CHANGEABLE.get(group, ()) and not (key in added and value == added[key])
    }
