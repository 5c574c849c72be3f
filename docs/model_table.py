"""Write docs/models.md, the table of models: ``python docs/model_table.py``; nothing is trained or even computed."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fullbatch.models.registry import NAMES
from fullbatch.models.summary import ModelSummary, summarize_model

PIXELS = 32  # the native size: the stems of all the defaults are made for it
FOREIGN = ("torchvision", "timm", "import")
VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    f"resnet18 model.normalization={norm}": ("resnet18", {"normalization": norm})
    for norm in ("groupnorm8", "InstanceNorm2d", "sequentialghostnorm", "skipinit", "Identity")
}
HEADER = """# Models

Each with its defaults, on images of 3x32x32 and 10 classes; written by `python docs/model_table.py`.

FLOPs are those of one forward pass of one image, counted by `torch.utils.flop_counter`: convolutions and matrix
products, a product and a sum as two. A gradient costs about three times as much, a regularized one about six times.

The last column says whether the full-batch gradient is the same however the data are cut into blocks. It is where no
layer mixes the samples of a batch, as batch norm does in training mode: there `data.batch_size` and `hyp.sub_batch`
decide over which samples statistics are taken. Dropout and stochastic depth, off by default, draw by the block, too.
With `hyp.grad_reg.block_strength` the sub-batches are part of the objective, whatever the model.

| `model=` | parameters | FLOPs | norm | independent of the block size |
|---|---:|---:|---|---|
"""
FOOTER = """
For models of torchvision and timm and for your own `fullbatch.models.summary.summarize_model` counts the same.
"""


def row(title: str, summary: ModelSummary) -> str:
    """Return a line of the table."""
    cost = f"{summary.flops / 1e9:.3f} G" if summary.flops >= 1e8 else f"{summary.flops / 1e6:.3f} M"
    independent = "yes" if summary.independent else "no"
    return f"| `{title}` | {summary.parameters:,} | {cost} | {summary.norm} | {independent} |"


def rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the models of the table: what is typed, the name and the options."""
    return {name: (name, {}) for name in NAMES if name not in FOREIGN} | VARIATIONS


def table() -> str:
    """Return the page."""
    lines = [row(title, summarize_model(name, pixels=PIXELS, **options)) for title, (name, options) in rows().items()]
    return HEADER + "\n".join(lines) + "\n" + FOOTER


if __name__ == "__main__":
    (Path(__file__).parent / "models.md").write_text(table(), encoding="utf-8")
