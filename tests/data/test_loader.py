"""Blocks: a pure function of (seed, step), however they are cut, cached, read or counted."""

import pytest
import torch
from block_loading import block_loader
from torch import Tensor

from fullbatch.data import loader as blocks_module
from fullbatch.data.augmentation import Augmentation
from fullbatch.data.images import ImageSet, TensorImages
from fullbatch.data.loader import BlockLoader
from fullbatch.runtime.files import format_bytes

MEAN, STD = (0.2, 0.4), (0.5, 0.25)
TRANSFORMS = {"RandomCrop": [6, 2], "RandomHorizontalFlip": 0.5, "RandomErasing": 0.5, "RandomRotation": 20}


class Counted:
    """Images that are not a tensor, and count how often they are read."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.reads = images, 0

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, ids: Tensor) -> Tensor:
        self.reads += len(ids)
        return self.images[ids]


def images(num: int = 45) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (num, 2, 6, 6), generator=generator, dtype=torch.uint8)


def loader(num: int = 45, **options: object) -> BlockLoader:
    dataset = ImageSet(TensorImages(images(num)), torch.arange(num) % 3, ("a", "b", "c"))
    return block_loader(dataset, **{"batch_size": 8, "mean": MEAN, "std": STD, "seed": 4, **options})


def everything(some_loader: BlockLoader, step: int = 2, **options: bool) -> tuple[Tensor, Tensor]:
    found = list(some_loader.blocks(step, **options))
    return torch.cat([block.inputs for block in found]), torch.cat([block.labels for block in found])


def test_samples_are_normalized_and_in_order() -> None:
    inputs, labels = everything(loader(dtype=torch.float64))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(2, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(inputs, (images().double() / 255 - mean) / std, rtol=1e-13, atol=1e-13)
    assert labels.tolist() == [index % 3 for index in range(45)]
    plain, _ = everything(loader(mean=None, std=None, dtype=torch.float64))
    torch.testing.assert_close(plain, images().double() / 255)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [8, 8, 8, 8, 8, 5]), (True, [8] * 5)])
def test_no_sample_is_dropped_unless_asked(drop_last: bool, sizes: list[int]) -> None:
    found = loader(drop_last=drop_last).blocks(0)
    assert found.sizes == sizes == [len(block.labels) for block in found]
    assert len(found) == len(sizes)


def test_dropping_everything_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.drop_last=True: 5 samples do not fill one block of 8"):
        loader(5, drop_last=True)


def test_augmentation_does_not_depend_on_the_block_size() -> None:
    results = [everything(loader(batch_size=size, augmentation=Augmentation(TRANSFORMS, 3))) for size in (1, 32, 128)]
    for inputs, _ in results[1:]:
        assert torch.equal(inputs, results[0][0])
    assert not torch.equal(results[0][0], everything(loader())[0])


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("persistent", [False, True])
def test_nor_on_the_number_of_workers_or_the_caching(persistent: bool) -> None:
    augmentation = Augmentation(TRANSFORMS, 3)
    cached = [everything(loader(augmentation=augmentation, caching=where)) for where in ("device", "ram", None)]
    for num_workers in (0, 2):
        reading = loader(
            augmentation=augmentation, caching=False, num_workers=num_workers, persistent_workers=persistent
        )
        cached += [everything(reading), everything(reading)]
    for inputs, labels in cached[1:]:
        assert torch.equal(inputs, cached[0][0])
        assert torch.equal(labels, cached[0][1])


@pytest.mark.parametrize("caching", ["device", False])
def test_copies_of_a_sample_lie_together_each_with_draws_of_its_own(caching: str | bool) -> None:
    augmentation = Augmentation(TRANSFORMS, 3)
    inputs, labels = everything(loader(augmentation=augmentation, copies=3, caching=caching), shuffle=True)
    assert torch.equal(labels.view(45, 3), labels[::3, None].expand(45, 3))
    alone, alone_labels = everything(loader(augmentation=augmentation), shuffle=True)
    assert torch.equal(inputs[::3], alone)  # the first copy is the sample as it would be alone
    assert torch.equal(labels[::3], alone_labels)
    for copy in (1, 2):
        different = (inputs[copy::3] != alone).flatten(1).any(dim=1)
        assert different.double().mean() > 0.9
    assert not torch.equal(inputs[1::3], inputs[2::3])
    for size in (1, 32):
        cut = everything(loader(augmentation=augmentation, copies=3, batch_size=size), shuffle=True)
        assert torch.equal(cut[0], inputs)


def test_blocks_count_samples_and_not_copies() -> None:
    found = loader(copies=3).blocks(0)
    assert found.sizes == [8, 8, 8, 8, 8, 5]
    blocks = list(found)
    assert [len(block.labels) for block in blocks] == [24, 24, 24, 24, 24, 15]
    plain = list(loader().blocks(0))
    assert [block.key for block in blocks] == [block.key for block in plain]
    assert torch.equal(blocks[5].inputs, plain[5].inputs.repeat_interleave(3, 0))


def test_steps_are_augmented_differently_and_repeat() -> None:
    some_loader = loader(augmentation=Augmentation(TRANSFORMS, 3))
    blocks = some_loader.blocks(1)
    first = torch.cat([block.inputs for block in blocks])
    assert torch.equal(first, torch.cat([block.inputs for block in blocks]))
    assert not torch.equal(first, everything(some_loader, 2)[0])


def test_a_shuffled_step_has_every_sample_once_in_an_order_of_its_own() -> None:
    orders = [everything(loader(seed=seed), step, shuffle=True)[0] for seed in (4, 5) for step in (0, 1)]
    reference = everything(loader())[0]
    for order in orders:
        assert not torch.equal(order, reference)
        assert torch.equal(order.flatten(1).sort(dim=0).values, reference.flatten(1).sort(dim=0).values)
    assert not any(torch.equal(orders[i], orders[j]) for i in range(4) for j in range(i))


def test_shuffled_samples_keep_their_labels_and_their_augmentation() -> None:
    some_loader = loader(augmentation=Augmentation(TRANSFORMS, 3))
    inputs, labels = everything(some_loader)
    shuffled, shuffled_labels = everything(some_loader, shuffle=True)
    for image, label in zip(shuffled, shuffled_labels, strict=True):
        (place,) = (inputs == image).flatten(1).all(dim=1).nonzero()[:, 0].tolist()
        assert labels[place] == label


def test_sampling_with_replacement_draws_as_many() -> None:
    numbers = torch.cat([everything(loader(1000), step, with_replacement=True)[0] for step in range(3)]).flatten(1)
    distinct = [len(part.unique(dim=0)) / 1000 for part in numbers.split(1000)]
    assert len(numbers) == 3000
    assert all(share == pytest.approx(1 - 1 / 2.71828, abs=0.03) for share in distinct)


def test_keys_are_the_blocks_own() -> None:
    some_loader = loader()
    keys = [[block.key for block in some_loader.blocks(step)] for step in (0, 1)]
    assert len({*keys[0], *keys[1]}) == 12
    assert [block.key for block in some_loader.blocks(0)] == keys[0]
    assert [block.key for block in some_loader.blocks(0)[2:4]] == keys[0][2:4]


def test_a_part_of_the_blocks_is_the_blocks_of_the_part() -> None:
    blocks = loader().blocks(0, shuffle=True)
    whole = list(blocks)
    for part in (slice(0, 2), slice(4, 9), slice(1)):
        for ours, theirs in zip(blocks[part], whole[part], strict=True):
            assert torch.equal(ours.inputs, theirs.inputs)


def test_reading_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    everything(loader(augmentation=Augmentation(TRANSFORMS, 3), caching=False), shuffle=True)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("free", "reads"), [(1 << 30, 1), (100, 3)])
def test_images_are_cached_by_default_where_they_fit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, reads: int
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(blocks_module, "available_memory", lambda: free)
    source = Counted(images())
    some_loader = BlockLoader(ImageSet(source, torch.zeros(45, dtype=torch.int64), ("a",)), batch_size=8)
    size = format_bytes(images().numel())
    reading = f"reading 45 images in every step ({size}; free: 0.1 KiB of ram)"
    assert caplog.messages == [f"caching 45 images on cpu ({size})" if reads == 1 else reading]
    before = source.reads
    found = [everything(some_loader)[0] for _ in range(3)]
    assert torch.equal(found[0], found[2])
    assert source.reads - before == (0 if reads == 1 else 3 * 45)


def test_memory_format_and_dtype_are_those_asked_for() -> None:
    (block, *_) = loader(dtype=torch.float64, memory_format=torch.channels_last).blocks(0)
    assert block.inputs.dtype == torch.float64
    assert block.inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(block.inputs, next(iter(loader(dtype=torch.float64).blocks(0))).inputs)
