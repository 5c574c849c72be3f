"""Settings of the data: `data` and `data/db`."""

from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from fullbatch.settings.types import (
    SETTINGS,
    ChannelValues,
    Count,
    Int,
    LargeInt,
    Name,
    NonNegativeInt,
    Positive,
    Seed,
    Text,
    family,
)


@dataclass(frozen=True, config=SETTINGS)
class NoDatabase:
    """`data/db=none`: images are augmented anew in each step."""

    name: Annotated[Literal["none"], Name]


def _no_normalization(value: Any) -> Any:
    if value is True:
        raise ValueError("images are stored as bytes and normalized when they are read: see data.normalize")
    return value


@dataclass(frozen=True, config=SETTINGS)
class LMDB:
    """`data/db=LMDB`: a database of frozen augmented copies of the data."""

    name: Annotated[Literal["lmdb"], Name]
    path: Text
    rebuild_existing_database: bool
    seed: Seed
    augmentations_train: dict[str, Any] | None
    augmentations_val: dict[str, Any] | None
    normalize: Annotated[Literal[False], BeforeValidator(_no_normalization)]
    rounds: Annotated[LargeInt, Field(ge=1, lt=2**32)]
    first_round_clean: bool
    write_frequency: Count
    shuffle_while_writing: bool
    temporary_database: bool
    max_readers: Count
    readahead: bool
    meminit: bool
    max_spare_txns: NonNegativeInt
    access: Annotated[Literal["get", "cursor"], Name]
    pixels: Count | None
    mean: ChannelValues | None


Database = Annotated[
    Union[Annotated[NoDatabase, Tag("none")], Annotated[LMDB, Tag("lmdb")]],  # noqa: UP007 (a runtime value)
    Discriminator(family),
]


@dataclass(frozen=True, config=SETTINGS)
class Data:
    """`data`: the images and how they are read."""

    name: Text
    path: Text | None
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
    mirrors: list[Text] | None
    db: Database
    resize_on_read: bool | None = None  # only for images of various sizes in files
