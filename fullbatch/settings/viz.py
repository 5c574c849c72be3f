"""Settings of loss landscapes: `viz`."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import (
    SETTINGS,
    Count,
    DatabaseName,
    Float,
    LargeInt,
    Name,
    NonNegativeInt,
    Seed,
    Text,
    none_as_blank,
)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _files(value: object) -> object:
    return [] if value is None else _listed(value)


@dataclass(frozen=True, config=SETTINGS)
class AxisSettings:
    """`viz.coordinates.x` and `.y`: equally spaced coordinates."""

    min: Float
    max: Float
    num: Count


@dataclass(frozen=True, config=SETTINGS)
class Coordinates:
    """`viz.coordinates`: the grid."""

    x: AxisSettings
    y: AxisSettings


@dataclass(frozen=True, config=SETTINGS)
class Viz:
    """`viz`: the surface to compute, and how it is stored."""

    type: Annotated[Literal["1d", "2d", "none"], Name]
    database_name: DatabaseName | None
    rebuild_existing_database: bool
    compute_full_loss: bool
    model_eval: bool
    recalibrate: bool
    directions: Annotated[Literal["random", "between", "pca"], Name]
    checkpoints: Annotated[list[Text] | None, BeforeValidator(_listed)]
    seed: Seed
    norm: Annotated[Literal["filter", "layer", "weight", "dfilter", "dlayer"], Name]
    ignore_layers: Annotated[Literal["biasbn"] | None, BeforeValidator(none_as_blank)]
    coordinates: Coordinates
    formats: Annotated[
        list[Annotated[Literal["png", "pdf", "svg", "html", "vtk", "csv"], Name]], BeforeValidator(_files)
    ]
    max_readers: Count
    readahead: bool
    meminit: bool
    max_spare_txns: NonNegativeInt
    map_size: Annotated[LargeInt, Field(ge=1 << 20)]
