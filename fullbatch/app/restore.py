"""The configuration of an evaluation: what a checkpoint says, changed by the command line."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fullbatch.app.hydra_cli import CONFIG
from fullbatch.build.data import about
from fullbatch.data.dataset import SOURCES
from fullbatch.models.model_file import StoredModel
from fullbatch.runtime.manifests import differences
from fullbatch.settings.parse import parse_tree, to_tree
from fullbatch.settings.stored import listed_keys, lookup, merge_stored
from fullbatch.training.checkpoint import checkpoint_path, read_newest

log = logging.getLogger(__name__)


def restore(
    tree: dict[str, Any], name: str | None, overrides: Sequence[str], *, training: bool = True
) -> tuple[dict[str, Any], StoredModel]:
    """Return the configuration of a checkpoint, changed by the command line, and the content of its file.

    For a file of another program, which has no configuration, the composed one is returned. From a checkpoint only the
    keys listed in ``fullbatch.settings.stored`` are taken.

    Args:
        tree: the composed configuration.
        name: ``impl.checkpoint.name``.
        overrides: of the command line, which win; each that differs from the checkpoint's value is logged.
        training: whether the training set is needed.

    Raises:
        ValueError: the name is blank, there is no such checkpoint, it cannot be read, or it needs something that only
            the command line can name.
    """
    if name is None:
        raise ValueError("impl.checkpoint.name: blank; give the name or the path of the checkpoint to evaluate")
    newest = read_newest(checkpoint_path(name))
    if newest is None:
        raise ValueError(f"impl.checkpoint.name={name}: there is no file {checkpoint_path(name)}")
    path, stored_model = newest
    if not stored_model.checkpoint:
        log.info("%s: a file of another program; data and model are those of the command line", path)
        return tree, stored_model
    with about(str(path)):
        stored = _configuration(stored_model.checkpoint)
        merged = merge_stored(tree, stored, overrides, _data_defaults, training=training)
        _log_differences(stored, merged)
        parse_tree(merged)
    if merged["data"]["mean"] is None and merged["data"]["normalize"]:
        log.info("%s: mean and std of the images are not in the file; they are computed from the training images", path)
    return merged, stored_model


def _configuration(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration in a checkpoint, with the facts about its images in place of blanks."""
    config, facts = checkpoint.get("config"), checkpoint.get("images")
    if not isinstance(config, dict):
        raise ValueError("the configuration in the checkpoint is damaged")
    if not (isinstance(facts, dict) and isinstance(config.get("data"), dict)):  # of an earlier version
        return config
    blank = {key for key, value in config["data"].items() if value is None}
    return {**config, "data": {**config["data"], **{key: facts[key] for key in facts if key in blank}}}


def _data_defaults(name: str) -> dict[str, Any]:
    """Return the settings in ``config/data`` of a data source; none for an unknown one."""
    known = {source.lower(): source for source in SOURCES}
    if name.lower() not in known:
        return {}
    defaults = to_tree(DictConfig(OmegaConf.load(CONFIG / "data" / f"{known[name.lower()]}.yaml")))
    return {key: value for key, value in defaults.items() if key != "defaults"}


def _log_differences(stored: Mapping[str, Any], merged: Mapping[str, Any]) -> None:
    """Log where the command line differs from what could be taken from a checkpoint."""
    for key in listed_keys(stored):
        for line in differences(lookup(stored, key), lookup(merged, key), key):
            log.info("not as in the checkpoint: %s", line)
    path = lookup(stored, "data.path")
    if path is not None and path != merged["data"]["path"]:
        now = merged["data"]["path"] or "blank"
        log.info("data.path is %s; in the checkpoint it was %s (to read that, add data.path=%s)", now, path, path)
