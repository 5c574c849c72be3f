"""The command line of a run, before Hydra sees it, and the jobs of a sweep."""

import json
import os
import random
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from fullbatch.settings.keys import all_keys

COMMAND = "FULLBATCH_COMMAND"
"""The environment variable that holds the command line of a sweep, for the processes of its launcher."""
JOBS = "FULLBATCH_JOBS"
"""The environment variable that holds the path of the list of jobs of a sweep."""
REPLACED = (
    *(f"{group}.augmentations_{split}" for group in ("data", "data.db") for split in ("train", "val")),
    *("model.args", "hyp.optim.args"),
)
"""Tables that a value on the command line replaces as a whole."""
WITH_VALUE = (
    *("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir"),
    *("-i", "--info", "--experimental-rerun"),
)
"""Options of Hydra that are followed by a value."""
STRUCTURE = re.compile(r"""['"\\\[\]{}$]|^\w+\(""")
"""Characters of quotes, lists, tables and interpolations, and the beginning of a function."""
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""The environment variables that torchrun sets."""


def is_torchrun_worker() -> bool:
    """Return whether torchrun has started this process, and not as the first one, which reports mistakes."""
    rank = os.environ.get("RANK", "0")
    return all(name in os.environ for name in TORCHRUN) and rank.isdecimal() and int(rank) > 0


def command_line() -> list[str]:
    """Return the command line of this run; in a process of a launcher, that of the sweep."""
    command = os.environ.get(COMMAND)
    return list(json.loads(command)) if command else sys.argv


class SweepJobs(Callback):
    """Lists the jobs of a sweep once, before the first, for all who need the list.

    A random order (``shuffle``) is a function of the command line, so that all processes run the same jobs.
    Sweeps by other sweepers than Hydra's own, which choose jobs as they go, have no list.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Replace the sweep in the configuration by explicit values, and write the list of jobs into its folder."""
        sweeper = config.hydra.sweeper
        os.environ.pop(JOBS, None)
        if not sweeper.get("_target_", "").endswith(".BasicSweeper"):
            return
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        fixed = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
        given = [*fixed, *cast("list[str]", OmegaConf.to_container(config.hydra.overrides.task, resolve=False))]
        state = random.getstate()
        random.seed(json.dumps(given))  # so that all processes of a launcher draw the same order
        try:
            values = {
                override.get_key_element(): list(override.sweep_string_iterator())
                if override.is_discrete_sweep()
                else [override.get_value_element_as_str()]
                for override in parser.parse_overrides(given)
            }
        finally:
            random.setstate(state)
        jobs = list(product(*([f"{key}={value}" for value in several] for key, several in values.items())))
        if jobs:
            with flag_override(config, ["struct", "readonly"], [False, False]):
                config.hydra.overrides.task = [f"{key}={','.join(several)}" for key, several in values.items()]
        path = Path(config.hydra.sweep.dir).absolute() / "jobs.json"
        with suppress(OSError):  # the sweeper writes there, too, and reports it
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(jobs), encoding="utf-8")
            os.environ[JOBS] = str(path)


def jobs_of_sweep() -> list[list[str]] | None:
    """Return the overrides of each job of the sweep that is running, in order; None where they are not listed."""
    path = os.environ.get(JOBS)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path and Path(path).exists() else None


def normalized(arguments: Sequence[str], config_folder: Path) -> list[str]:
    """Return the command line in Hydra's grammar.

    - ``data=cifar10``: choices are spelled like their files below ``config_folder``.
    - ``key=~/folder``: the tilde, which Hydra refuses, is expanded.
    - ``name=1e3``, ``data.path=/tmp/a#b``: text, and what Hydra's grammar does not know, is quoted.
    - ``data.augmentations_train={...}``: the whole table is replaced; Hydra would merge it and refuse new names.
    - Options, such as ``-m``, may stand anywhere.

    Raises ``OverrideParseException`` for a value without a key, which fails an assertion in Hydra.
    """
    options, overrides, rest = [], [], iter(arguments)
    for argument in rest:
        if argument.startswith("-"):
            options += [argument, *islice(rest, int(argument in WITH_VALUE))]
        else:
            overrides += _normalize(argument, config_folder)
    return [*overrides, *options]


def config_files(arguments: Sequence[str]) -> list[Path]:
    """Return the YAML files in the folders that the options ``--config-dir`` and ``--config-path`` name."""
    values = dict(zip(arguments, [*arguments[1:], ""], strict=False))
    values |= {option: value for option, _, value in (text.partition("=") for text in arguments) if value}
    folders = [Path(values[name]) for name in ("-cd", "--config-dir", "-cp", "--config-path") if name in values]
    return sorted(path for folder in folders for path in folder.rglob("*.yaml"))


def _normalize(argument: str, config_folder: Path) -> list[str]:
    key, equals, value = argument.partition("=")
    if not equals:
        return [argument]
    if not key.strip(" +~"):
        raise OverrideParseException(argument, f"Error parsing override '{argument}'")
    if key in REPLACED and value.startswith("{"):
        return [f"{key}=", f"++{key}={_parsable(key, value)}"]
    folder = config_folder / key.lstrip("+~")
    if folder.is_dir():
        spellings = {file.stem.lower(): file.stem for file in folder.glob("*.yaml")}
        value = re.sub(r"[\w-]+", lambda word: spellings.get(word[0].lower(), word[0]), value)
        value = value if STRUCTURE.search(value) else _texts(value, optional=False)
    return [f"{key}={_parsable(key, value)}"]


def _parsable(key: str, value: str) -> str:
    """Return the value of a key with the quotes that Hydra needs."""
    types = [known for known in all_keys() if known.name == key.lstrip("+")]
    if any(known.is_list_of_texts for known in types) and value.startswith("[") and value.endswith("]"):
        if not STRUCTURE.search(value[1:-1]):
            value = f"[{_texts(value[1:-1], optional=False)}]"
    elif any(known.is_text for known in types) and not STRUCTURE.search(value):
        value = _texts(value, optional=any(known.may_be_blank for known in types))
    elif value.startswith("~/"):
        value = os.path.expanduser(value)
    quoted = QuotedString(value, Quote.single).with_quotes()
    return quoted if _parsed(key, value) is None and _parsed(key, quoted) is not None else value


def _texts(value: str, *, optional: bool) -> str:
    """Return text, or several separated by commas, quoted where Hydra would read a number, a boolean or nothing."""
    texts = []
    for text in value.split(","):
        expanded = os.path.expanduser(text) if text.startswith("~/") else text
        parsed = _parsed("key", expanded)
        is_text = parsed is not None and isinstance(parsed.value(), str | (type(None) if optional else str))
        texts.append(expanded if is_text else QuotedString(expanded.strip(), Quote.single).with_quotes())
    return ",".join(texts)


def _parsed(key: str, value: str) -> Override | None:
    """Return the override; None where Hydra's grammar does not know it."""
    try:
        return OverridesParser.create().parse_override(f"{key}={value}")
    except HydraException:
        return None
