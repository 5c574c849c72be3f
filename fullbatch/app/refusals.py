"""What Hydra refuses, in one line that says what would be accepted."""

import re
from collections.abc import Callable

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from fullbatch.settings.keys import describe_unknown_key, did_you_mean

Refusal = HydraException | OmegaConfBaseException

MESSAGES: dict[str, Callable[[str], str]] = {
    r"is not in struct\s+full_key: (\S+)": describe_unknown_key,
    r"Could not override '(.*?)'": describe_unknown_key,
    r"Could not delete.*'(.*?)' does not exist": describe_unknown_key,
    r"An item is already at '(.*?)'": lambda key: f"+{key}: the key exists; leave out the plus",
    r"Ambiguous value for argument '(.*)'": lambda argument: (
        f"{argument}: several values are a sweep, which needs -m; for a text type "
        f""""{argument.replace("=", "='", 1)}'", for a list {argument.replace("=", "=[", 1)}]"""
    ),
}
"""Patterns of Hydra's messages -> what to say of the key or argument in them."""

DETAILS = ("See https", "full_key", "object_type", "Config search path", "provider=")
"""Beginnings of lines in Hydra's messages that are left out."""


def describe_refusal(error: Refusal) -> str:
    """Return the message of an error of Hydra or OmegaConf for whoever typed the command line."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        question = did_you_mean(name, error.options) or "unknown;"
        return f"{group}={name}: {question} known: {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        return f"Error parsing override '{error.override}': it should be key=value"
    causes = [str(error), str(error.__cause__ or "")]
    for pattern, describe in MESSAGES.items() if isinstance(error, ConfigCompositionException) else ():
        if match := re.search(pattern, "\n".join(causes)):
            return describe(match[1])
    lines = dict.fromkeys(line.strip().rstrip(":") for text in causes for line in text.splitlines())
    return ": ".join(line for line in lines if line and not line.startswith(DETAILS))
