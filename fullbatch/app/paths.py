"""Where a run writes."""

from dataclasses import dataclass
from pathlib import Path

from fullbatch.settings import Run
from fullbatch.training.checkpoint import CHECKPOINTS, checkpoint_path, is_path

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
        """Return the paths of a run; a dry run writes everything into ``folder``.

        Raises:
            ValueError: ``impl.checkpoint.name`` is a path that is no file and cannot become one.
        """
        name = None if run.dryrun else run.impl.checkpoint.name
        checkpoint = folder / CHECKPOINT if name is None else checkpoint_path(name)
        if name is not None and is_path(name):
            _require_usable(name, checkpoint)
        return cls(folder, checkpoint, (folder if run.dryrun else TABLES) / f"table_fb_{run.data.name}_runs.csv")

    @property
    def ledger(self) -> Path:
        """The ledger, beside the table of runs."""
        return self.table.with_name(LEDGER)


def _require_usable(name: str, path: Path) -> None:
    """Raise ``ValueError`` unless a run can be continued from the file at a path, or write a new file there."""
    if path.with_suffix("").is_dir() and not path.exists():
        raise ValueError(f"impl.checkpoint.name={name}: a folder; give a file in it, such as {name}/{CHECKPOINT}")
    if path.suffix not in (".pth", ".pt"):
        raise ValueError(f"impl.checkpoint.name={name}: a run writes checkpoints of its own kind; accepted: .pth, .pt")
    if not path.parent.is_dir() and path.parts[0] != CHECKPOINTS:
        raise ValueError(
            f"impl.checkpoint.name={name}: a path, but there is no folder {path.parent}; accepted: a path in an "
            f"existing folder or below {CHECKPOINTS}/, or a name without separators"
        )
