"""Describe a database or a data set, and draw a sheet of its images as a model receives them.

Each row of the sheet is a sample. Its columns are the copies in the first rounds of a database; for a data set, the
original and then its augmentation in the first steps of a run with --seed.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from fullbatch.cli.command import command_parser, run_command
from fullbatch.data.augmentation import Augmentation, augmentation_seed
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.frozen.records import IMAGES, label_of
from fullbatch.data.frozen.store import StoredImages, digest_in_child, opened
from fullbatch.data.reading import reader_of
from fullbatch.runtime.files import require_writable
from fullbatch.runtime.lmdb import LMDBOptions
from fullbatch.runtime.plain_text import PlainConsole

_GAP, _SIDE = 2, 64  # pixels between images; approximate side to which smaller images are enlarged


@dataclass(frozen=True)
class Inspection:
    """The properties of a database or data set, the labels of its samples, and access to copies of them."""

    properties: Mapping[str, Any]
    classes: Sequence[str]
    labels: Tensor
    copy: Callable[[Tensor, int], Tensor]
    """Samples, int64 [n], and the number of a copy -> images, uint8 [n, C, H, W]."""
    num_copies: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the properties, and draw the sheet; return the exit status."""
    parser = command_parser("inspect", __doc__)
    parser.add_argument("what", help="folder of a database, or name of a data set")
    parser.add_argument("--verify", action="store_true", help="without effect: a database is always verified")
    parser.add_argument("--sheet", type=Path, help="PNG file to draw")
    parser.add_argument("--rows", type=int, default=10, help="number of samples on the sheet, taken from each class")
    parser.add_argument("--columns", type=int, default=8, help="number of copies of each sample")
    parser.add_argument("--path", default="~/data", help="folder with the files of a data set")
    parser.add_argument("--pixels", type=int, help="side to which the images of a folder are resized")
    parser.add_argument("--size", type=int, help="number of training images, to compute mean and std faster")
    parser.add_argument("--whole", action="store_true", help="crop images of various sizes before they are resized")
    parser.add_argument(
        "--augmentations", type=json.loads, default={}, help="""for example '{"RandomCrop": [32, 4]}'"""
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the run with this augmentation")
    return run_command(_inspect, parser.parse_args(arguments))


def _inspect(options: Namespace) -> None:
    if options.sheet is not None:
        require_writable(options.sheet)
    inspection = _inspect_database(options) if Path(options.what).is_dir() else _inspect_data_set(options)
    table = Table(show_header=False)
    for name, value in inspection.properties.items():
        table.add_row(name, f"{value:,}" if name in ("count", "validation") else json.dumps(value))
    counts = torch.bincount(inspection.labels, minlength=len(inspection.classes)).tolist()
    table.add_row("samples", ", ".join(f"{name} {n:,}" for name, n in zip(inspection.classes, counts, strict=True)))
    PlainConsole(soft_wrap=True).print(table)
    if options.sheet is not None:
        from PIL import Image  # noqa: PLC0415

        sheet = draw_sheet(inspection, options.rows, options.columns).permute(1, 2, 0).squeeze(-1)
        Image.fromarray(sheet.contiguous().numpy()).save(options.sheet, format="PNG")


def draw_sheet(inspection: Inspection, rows: int, columns: int) -> Tensor:
    """Draw copies of ``rows`` samples, first one of each class, then another: uint8 [C, height, width]."""
    labels = inspection.labels
    order = torch.argsort(labels, stable=True)
    counts = torch.bincount(labels)
    rank_in_class = torch.empty_like(labels)
    rank_in_class[order] = torch.arange(len(labels)) - (torch.cumsum(counts, 0) - counts)[labels[order]]
    ids = torch.argsort(rank_in_class * len(inspection.classes) + labels)[:rows]
    copies = [inspection.copy(ids, number) for number in range(min(columns, inspection.num_copies))]
    shapes = {tuple(copy.shape[1:]) for copy in copies}
    if len(shapes) > 1:
        raise ValueError(f"--augmentations: changes the shape of the images ({sorted(shapes)}); --pixels must match")
    images = torch.stack(copies, dim=1)
    factor = max(1, _SIDE // images.shape[-1])
    images = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    framed = torch.nn.functional.pad(images, (_GAP, 0, _GAP, 0), value=255)
    num_rows, num_columns, channels, height, width = framed.shape
    return framed.permute(2, 0, 3, 1, 4).reshape(channels, num_rows * height, num_columns * width)


def _inspect_database(options: Namespace) -> Inspection:
    folder = Path(options.what)
    with IMAGES.report_errors(folder):
        digest_in_child(folder)  # a damaged page can end a process
        environment = opened(folder, LMDBOptions())
        manifest = dict(environment.manifest() or {})
        if not manifest:
            raise ValueError("no manifest")
        images, count = StoredImages(folder, manifest, LMDBOptions()), int(manifest["count"])
        manifest["digest"] = environment.stored_digest()
        records = environment.records()
        labels = torch.tensor([label_of(next(records)[1]) for _ in range(count)])

    def copy(ids: Tensor, number: int) -> Tensor:
        return images.fetch(ids + number * count)

    return Inspection(manifest, manifest.pop("classes"), labels, copy, int(manifest["rounds"]))


def _inspect_data_set(options: Namespace) -> Inspection:
    request = ImageRequest(
        path=options.path,
        pixels=options.pixels,
        size=options.size,
        resize_on_read=False if options.whole else None,
        download=False,
    )
    data = load_images(options.what, request)
    augmentation = Augmentation(options.augmentations, augmentation_seed(options.seed), "--augmentations")
    reader, batch_transforms = reader_of(data.train.images, augmentation)

    def copy(ids: Tensor, number: int) -> Tensor:
        if number == 0:
            return data.train.images.fetch(ids)
        images = reader.read(ids, number - 1)
        return images if batch_transforms is None else batch_transforms(images, ids, number - 1)

    properties = {
        "name": options.what,
        "count": len(data.train),
        "validation": len(data.valid),
        "shape": [data.channels, data.pixels, data.pixels],
        "mean": [round(value, 4) for value in data.mean],
        "std": [round(value, 4) for value in data.std],
        "source": data.train.checksum(),
    }
    return Inspection(properties, data.classes, data.train.labels, copy, sys.maxsize if options.augmentations else 1)
