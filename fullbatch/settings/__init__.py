"""The settings of a run as frozen dataclasses: every key with its type, its range and its accepted names.

They have the same structure as ``config/`` and are filled by ``fullbatch.settings.parse``. Nothing here imports torch.
"""

from pydantic.dataclasses import dataclass

from fullbatch.settings.analysis import Analysis
from fullbatch.settings.data import Data
from fullbatch.settings.hyp import Hyp
from fullbatch.settings.impl import Impl
from fullbatch.settings.model import Model
from fullbatch.settings.types import SETTINGS, FileName, Seed, Text
from fullbatch.settings.viz import Viz

__all__ = ["Analysis", "Data", "Hyp", "Impl", "Run", "Viz"]


@dataclass(frozen=True, config=SETTINGS)
class Run:
    """All settings of a run."""

    base_dir: Text
    seed: Seed | None
    name: FileName
    dryrun: bool
    plan: bool
    data: Data
    model: Model
    hyp: Hyp
    impl: Impl
    analysis: Analysis
    viz: Viz
