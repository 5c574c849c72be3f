"""Look at data: what a database or a data set holds, and a sheet of its images as a model sees them.

    python -m fullbatch.cli.inspect FOLDER_OF_A_DATA_BASE [--verify] [--sheet FILE.png]
    python -m fullbatch.cli.inspect NAME_OF_A_DATA_SET [--path FOLDER] [--augmentations JSON] [--sheet FILE.png]

A row of the sheet is a sample. Its columns are its copies in the first rounds or, of a data set, the sample as it is
and then as it is augmented in the first steps of a run with ``--seed``.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fullbatch.data.augmentation import Augmentation, augmentation_seed
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.frozen.records import IMAGES, label_of
from fullbatch.data.frozen.store import StoredImages, digest, opened
from fullbatch.data.reading import reader_of
from fullbatch.runtime.files import format_error, require_writable
from fullbatch.runtime.lmdb import LMDBOptions

_GAP, _SIDE = 2, 64  # pixels between images; the side that smaller ones are enlarged to, about


@dataclass(frozen=True)
class Shown:
    """What is known of some images: facts, the labels of the samples, and how to get copies of them."""

    facts: Mapping[str, Any]
    classes: Sequence[str]
    labels: Tensor
    copy: Callable[[Tensor, int], Tensor]
    """Samples (int64 [n]) and the number of a copy, from 0 -> uint8 [n, C, H, W]."""
    num_copies: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Show what the command line asks for; return the exit status, 2 for a mistake."""
    options = _parser().parse_args(arguments)
    try:
        if options.sheet is not None:
            require_writable(options.sheet)
        shown = _data_base(options) if Path(options.what).is_dir() else _data_set(options)
        Console(soft_wrap=True).print(_table(shown))
        if options.sheet is not None:
            _draw(sheet(shown, options.rows, options.columns), options.sheet)
    except (ValueError, OSError) as error:
        message = format_error(error) if isinstance(error, OSError) else str(error)
        Console(file=sys.stderr, soft_wrap=True, highlight=False).print(message, markup=False)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def sheet(shown: Shown, rows: int, columns: int) -> Tensor:
    """Return images side by side, uint8 [C, height, width]: ``rows`` samples of all classes, ``columns`` copies."""
    turns = _turns(shown.labels) * len(shown.classes) + shown.labels  # the first of each class, then the second
    ids = torch.argsort(turns)[:rows]
    shown_copies = [shown.copy(ids, number) for number in range(min(columns, shown.num_copies))]
    shapes = {tuple(copy.shape[1:]) for copy in shown_copies}
    if len(shapes) > 1:
        raise ValueError(f"--augmentations: changes the shape of the images ({sorted(shapes)}); --pixels must match")
    copies = torch.stack(shown_copies, dim=1)
    factor = max(1, _SIDE // copies.shape[-1])
    copies = copies.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    framed = torch.nn.functional.pad(copies, (_GAP, 0, _GAP, 0), value=255)
    num_rows, num_columns, channels, height, width = framed.shape
    return framed.permute(2, 0, 3, 1, 4).reshape(channels, num_rows * height, num_columns * width)


def _turns(labels: Tensor) -> Tensor:
    """Return how many samples of the same class come before each: int64 [N]."""
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    starts = torch.cumsum(counts, 0) - counts
    turns = torch.empty_like(labels)
    turns[order] = torch.arange(len(labels)) - starts[labels[order]]
    return turns


def _data_base(options: argparse.Namespace) -> Shown:
    folder = Path(options.what)
    with IMAGES.report_errors(folder):
        environment = opened(folder, LMDBOptions())
        manifest = dict(environment.manifest() or {})
        if not manifest:
            raise ValueError("no manifest")
        images, count = StoredImages(folder, manifest, LMDBOptions()), int(manifest["count"])
        manifest["digest"] = environment.stored_digest()
        if options.verify and digest(environment) != manifest["digest"]:
            raise ValueError(f"the digest of its records is {digest(environment)}, not {manifest['digest']}")
        records = environment.records()
        labels = torch.tensor([label_of(next(records)[1]) for _ in range(count)])

    def copy(ids: Tensor, number: int) -> Tensor:
        return images.fetch(ids + number * count)

    return Shown(manifest, manifest.pop("classes"), labels, copy, int(manifest["rounds"]))


def _data_set(options: argparse.Namespace) -> Shown:
    request = ImageRequest(
        path=options.path,
        pixels=options.pixels,
        size=options.size,
        resize_on_read=False if options.whole else None,
        download=False,
    )
    data = load_images(options.what, request)
    augmentation = Augmentation(options.augmentations, augmentation_seed(options.seed), "--augmentations")
    reader, rest = reader_of(data.train.images, augmentation)

    def copy(ids: Tensor, number: int) -> Tensor:
        if number == 0:
            return data.train.images.fetch(ids)
        images = reader.read(ids, number - 1)
        return images if rest is None else rest(images, ids, number - 1)

    facts = {
        "name": options.what,
        "count": len(data.train),
        "validation": len(data.valid),
        "shape": [data.channels, data.pixels, data.pixels],
        "mean": [round(value, 4) for value in data.mean],
        "std": [round(value, 4) for value in data.std],
        "source": data.train.checksum(),
    }
    return Shown(facts, data.classes, data.train.labels, copy, sys.maxsize if options.augmentations else 1)


def _table(shown: Shown) -> Table:
    table = Table(show_header=False)
    for name, fact in shown.facts.items():
        table.add_row(name, f"{fact:,}" if name in ("count", "validation") else json.dumps(fact))
    counts = torch.bincount(shown.labels, minlength=len(shown.classes)).tolist()
    table.add_row("samples", ", ".join(f"{name} {n:,}" for name, n in zip(shown.classes, counts, strict=True)))
    return table


def _draw(images: Tensor, path: Path) -> None:
    from PIL import Image  # noqa: PLC0415

    values = images.permute(1, 2, 0).squeeze(-1).contiguous().numpy()
    Image.fromarray(values).save(path, format="PNG")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m fullbatch.cli.inspect", None, __doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", help="folder of a database, or the name of a data set")
    parser.add_argument("--verify", action="store_true", help="read all records of a database and compare the digest")
    parser.add_argument("--sheet", type=Path, help="the PNG file to draw")
    parser.add_argument("--rows", type=int, default=10, help="samples on the sheet, of one class after the other")
    parser.add_argument("--columns", type=int, default=8, help="copies of each sample")
    parser.add_argument("--path", default="~/data", help="where the files of a data set lie")
    parser.add_argument("--pixels", type=int, help="side to resize the images of a folder to")
    parser.add_argument("--size", type=int, help="training images to use; for all, mean and std may take a while")
    parser.add_argument("--whole", action="store_true", help="crops see images of various sizes as large as they are")
    parser.add_argument("--augmentations", type=json.loads, default={}, help="""as in '{"RandomCrop": [32, 4]}'""")
    parser.add_argument("--seed", type=int, default=0, help="of the run whose augmentation is shown")
    return parser


if __name__ == "__main__":
    sys.exit(main())
