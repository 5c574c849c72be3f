"""Settings of the data: `data` and `data/db`."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import SETTINGS, ChannelValues, Count, Int, Name, Positive, Seed


@dataclass(frozen=True, config=SETTINGS)
class DataBase:
    """`data/db`: where a frozen augmented copy of the data lives."""

    name: Annotated[Literal["none"], Name]


@dataclass(frozen=True, config=SETTINGS)
class Data:
    """`data`: the pictures and how they come to the model."""

    name: str
    path: str | None
    size: Count | None
    valid_size: Count | None
    subset_seed: Seed
    channels: Count | None
    classes: Annotated[Int, Field(ge=2)] | None
    pixels: Count | None
    normalize: bool
    mean: ChannelValues | None
    std: tuple[Positive, ...] | None
    batch_size: Count
    augmentations_train: dict[str, Any] | None
    augmentations_val: dict[str, Any] | None
    caching: Annotated[Literal["device", "ram", True, False], Name] | None
    drop_last: bool
    download: bool
    mirrors: list[str] | None
    db: DataBase
