"""Where a run writes."""

from dataclasses import dataclass
from pathlib import Path

from fullbatch.settings import Run
from fullbatch.training.checkpoint import checkpoint_path

CHECKPOINT = "checkpoint.pth"
"""The checkpoint of a run without ``impl.checkpoint.name``, in its folder."""
LEDGER = "ledger.sqlite"
TABLES = Path("tables")


@dataclass(frozen=True)
class RunPaths:
    """The paths of a run.

    Args:
        folder: of the run.
        checkpoint: its checkpoint.
        table: the table of runs, with a row for each.
    """

    folder: Path
    checkpoint: Path
    table: Path

    @classmethod
    def of(cls, run: Run, folder: Path) -> "RunPaths":
        """Return the paths of a run; a dry run writes everything into ``folder``."""
        name = None if run.dryrun else run.impl.checkpoint.name
        checkpoint = folder / CHECKPOINT if name is None else checkpoint_path(name)
        return cls(folder, checkpoint, (folder if run.dryrun else TABLES) / f"table_fb_{run.data.name}_runs.csv")

    @property
    def ledger(self) -> Path:
        """The ledger, beside the table of runs."""
        return self.table.with_name(LEDGER)
