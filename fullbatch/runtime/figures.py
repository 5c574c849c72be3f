"""Figures drawn by matplotlib, whatever backend its environment names and whatever names contain."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fullbatch.runtime.files import format_error
from fullbatch.runtime.plain_text import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


log = logging.getLogger(__name__)

FORMATS = ("png", "pdf", "svg")


def import_matplotlib() -> None:
    """Import matplotlib, also if MPLBACKEND names a backend that is not installed, which would be an error."""
    backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib  # noqa: PLC0415
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def written(path: Path, write: Callable[[], object]) -> bool:
    """Write a figure, or another file with what is recorded elsewhere; return whether it was written.

    A warning replaces an error, as of a broken configuration of matplotlib: the computation does not fail after its
    end. A function that returns False has written nothing.
    """
    try:
        return write() is not False
    except Exception as error:  # whatever the library raises
        reason = (format_error(error).strip() or type(error).__name__).splitlines()[0]
        log.warning("%s is not written: %s", path, reason)
        log.debug("where it happened", exc_info=error)
        return False


@contextmanager
def figure_file(path: str | Path, size: tuple[float, float], title: str) -> Iterator["Figure"]:
    """Yield a figure of the size in inches, which is written when the context ends without an error.

    The suffix of the path chooses one of ``FORMATS``. The title is plain text: ``$`` begins no formula. LaTeX is not
    used.

    Raises:
        ValueError: for another suffix.
        ImportError: matplotlib is missing.
    """
    form = require_format(path, FORMATS)
    import_matplotlib()
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context({"text.usetex": False}):
        figure = Figure(figsize=size, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        if title:
            figure.suptitle(printable(title), parse_math=False)
        yield figure
        canvas.print_figure(path, dpi=130, format=form)


def require_format(path: str | Path, accepted: Sequence[str]) -> str:
    """Return the format that the suffix of a path names; ``ValueError`` lists the accepted ones."""
    form = Path(path).suffix.lower().removeprefix(".")
    if form not in accepted:
        raise ValueError(f"{path}: unknown format; accepted: {', '.join(f'.{name}' for name in accepted)}")
    return form
