"""Write docs/models.md, the table of models: ``python docs/model_table.py``. Models are counted, not evaluated."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from fullbatch.models.registry import NAMES
from fullbatch.models.summary import ModelSummary, summarize_model

PIXELS = 32  # the default stems are made for this size
FOREIGN = ("torchvision", "timm", "import")
VARIATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    f"resnet18 model.normalization={norm}": ("resnet18", {"normalization": norm})
    for norm in ("groupnorm8", "InstanceNorm2d", "sequentialghostnorm", "skipinit", "Identity")
}
HEADER = """# Models

All models with their default options, on images of 3x32x32 and 10 classes. This page is written by
`python docs/model_table.py`.

FLOPs are those of the forward pass of one image, counted by `torch.utils.flop_counter`: convolutions and matrix
products, where a multiplication and an addition count as two. A gradient costs about three times as much, a
regularized gradient about six times.

The last column says whether the full-batch gradient is independent of how the data are split into blocks. It is unless
a layer mixes the samples of a batch, as batch norm does in training mode: then `data.batch_size` and `hyp.sub_batch`
determine the samples of its statistics. Dropout and stochastic depth, which are off by default, also draw per block.
With `hyp.grad_reg.block_strength` the sub-batches are part of the objective for every model.

| `model=` | parameters | FLOPs | norm | independent of the block size |
|---|---:|---:|---|---|
"""
FOOTER = """
`fullbatch.models.summary.summarize_model` counts the same for models of torchvision and timm and for your own.
"""


def row(title: str, summary: ModelSummary) -> str:
    """Return one row of the table."""
    cost = f"{summary.flops / 1e9:.3f} G" if summary.flops >= 1e8 else f"{summary.flops / 1e6:.3f} M"
    independent = "yes" if summary.independent else "no"
    return f"| `{title}` | {summary.parameters:,} | {cost} | {summary.norm} | {independent} |"


def rows() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name and options of each model, by its overrides on the command line."""
    return {name: (name, {}) for name in NAMES if name not in FOREIGN} | VARIATIONS


def table() -> str:
    """Return the page."""
    lines = [row(title, summarize_model(name, pixels=PIXELS, **options)) for title, (name, options) in rows().items()]
    return HEADER + "\n".join(lines) + "\n" + FOOTER


if __name__ == "__main__":
    (Path(__file__).parent / "models.md").write_text(table(), encoding="utf-8")
