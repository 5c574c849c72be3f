"""Augmentation: a pure function of (seed, step, id), equal to torchvision's operation for the same draw."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional

from fullbatch.data import batched
from fullbatch.data.augmentation import Augmentation

BATCHED = {"RandomCrop": [6, 2], "RandomHorizontalFlip": 0.5, "RandomVerticalFlip": 0.5, "RandomErasing": 0.5}
ONE_BY_ONE = {"RandomResizedCrop": 6, "ColorJitter": [0.4, 0.4, 0.4], "RandomRotation": 30}
CONFIGURATIONS = {
    **{name: {name: arguments} for name, arguments in (BATCHED | ONE_BY_ONE).items()},
    "all": BATCHED | ONE_BY_ONE,
}
configurations = pytest.mark.parametrize("transforms", CONFIGURATIONS.values(), ids=CONFIGURATIONS)


def images(num: int, channels: int = 3, pixels: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (num, channels, pixels, pixels), generator=generator, dtype=torch.uint8)


# A pure function


@configurations
def test_the_company_and_the_order_of_a_sample_do_not_matter(transforms: dict[str, Any]) -> None:
    augmentation, given, ids = Augmentation(transforms, seed=3), images(24), torch.arange(100, 124)
    whole = augmentation(given, ids, step=5)
    order = torch.randperm(24)
    assert torch.equal(augmentation(given[order], ids[order], 5), whole[order])
    for sizes in ([1] * 24, [7, 7, 10], [23, 1]):
        parts = zip(given.split(sizes), ids.split(sizes), strict=True)
        assert torch.equal(torch.cat([augmentation(part, names, 5) for part, names in parts]), whole)
    assert torch.equal(Augmentation(transforms, seed=3)(given, ids, 5), whole)  # nothing is carried from call to call


@configurations
def test_seed_step_id_and_copy_each_make_a_difference(transforms: dict[str, Any]) -> None:
    same = images(1).expand(40, -1, -1, -1)  # forty times the same image: only the draws differ
    ids = torch.arange(40)
    results = [
        Augmentation(transforms, seed)(same, ids + shift, step, copy)
        for seed, step, shift, copy in (
            (0, 0, 0, 0),
            (1, 0, 0, 0),
            (0, 1, 0, 0),
            (0, 0, 40, 0),
            (0, 0, 0, 1),
            (0, 0, 0, 2),
        )
    ]
    for index, result in enumerate(results):
        assert len({image.numpy().tobytes() for image in result}) > 1
        assert not any(torch.equal(result, other) for other in results[:index])


@configurations
def test_no_generator_and_no_input_is_changed(transforms: dict[str, Any]) -> None:
    given = images(4)
    kept, before = given.clone(), generators()
    Augmentation(transforms, seed=0)(given, torch.arange(4), 0)
    assert torch.equal(given, kept)
    assert generators() == before


def generators() -> list[str]:
    """The states of all global generators of the CPU."""
    return [str(torch.get_rng_state().tolist()), str(random.getstate()), str(np.random.get_state())]  # noqa: NPY002


@configurations
def test_global_generators_do_not_matter(transforms: dict[str, Any]) -> None:
    augmentation, results = Augmentation(transforms, seed=0), []
    for seed in range(2):
        torch.manual_seed(seed)
        random.seed(seed)
        results.append(augmentation(images(8), torch.arange(8), 0))
    assert torch.equal(*results)


def test_transforms_draw_apart_from_each_other() -> None:
    """The same name cannot stand twice in a mapping, but in two cases: two fair coins agree half of the time."""
    twice = Augmentation({"RandomHorizontalFlip": 0.5, "randomhorizontalflip": 0.5}, seed=0)
    row = torch.tensor([0, 1], dtype=torch.uint8).expand(4000, 1, 1, 2)
    unchanged = (twice(row, torch.arange(4000), 0)[..., 0] == 0).float().mean()
    assert float(unchanged) == pytest.approx(0.5, abs=0.04)  # 5 standard deviations


def test_transforms_act_in_the_order_given() -> None:
    given, ids = images(3), torch.arange(3)
    first = Augmentation({"CenterCrop": 4, "Pad": 1}, seed=0)(given, ids, 0)
    second = Augmentation({"Pad": 1, "CenterCrop": 4}, seed=0)(given, ids, 0)
    assert torch.equal(first, functional.pad(given[:, :, 1:5, 1:5], [1]))
    assert torch.equal(second, given[:, :, 1:5, 1:5])


def test_no_transform_changes_nothing() -> None:
    given = images(3)
    assert torch.equal(Augmentation({}, seed=0)(given, torch.arange(3), 0), given)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batched_transforms_draw_the_same_on_the_gpu() -> None:
    augmentation, given, ids = Augmentation(BATCHED, seed=0), images(200), torch.arange(200)
    assert torch.equal(augmentation(given.cuda(), ids.cuda(), 0).cpu(), augmentation(given, ids, 0))


# Equal to torchvision, for given draws

sides = st.integers(1, 7)


@given(st.integers(0, 4), st.integers(1, 3), sides, sides, st.data())
def test_batched_crops_are_those_of_torchvision(
    n: int, channels: int, height: int, width: int, data: st.DataObject
) -> None:
    given = torch.randint(256, (n, channels, 7, 7), dtype=torch.uint8)
    top = data.draw(st.lists(st.integers(0, 7 - height), min_size=n, max_size=n))
    left = data.draw(st.lists(st.integers(0, 7 - width), min_size=n, max_size=n))
    found = batched.crop(
        given, torch.tensor(top, dtype=torch.int64), torch.tensor(left, dtype=torch.int64), height, width
    )
    assert found.shape == (n, channels, height, width)
    for index in range(n):
        assert torch.equal(found[index], functional.crop(given[index], top[index], left[index], height, width))


@given(st.lists(st.booleans(), max_size=5))
def test_batched_flips_are_those_of_torchvision(chosen: list[bool]) -> None:
    given = images(len(chosen), pixels=5)
    for dim, mirror in ((-1, functional.hflip), (-2, functional.vflip)):
        found = batched.flip(given, torch.tensor(chosen, dtype=torch.bool), dim)
        for index, mirrored in enumerate(chosen):
            assert torch.equal(found[index], mirror(given[index]) if mirrored else given[index])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 5), st.integers(1, 5)), max_size=4))
def test_batched_erasing_is_that_of_torchvision(boxes: list[tuple[int, int, int, int]]) -> None:
    given = images(len(boxes), pixels=9)
    top, left, height, width = torch.tensor(boxes, dtype=torch.int64).view(-1, 4).unbind(1)
    for value in (7, torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)):
        found = batched.erase(given, top, left, height, width, value)
        for index, box in enumerate(boxes):
            assert torch.equal(found[index], functional.erase(given[index], *box, torch.as_tensor(value)))


def coordinates(num: int, pixels: int) -> Tensor:
    """Images whose two channels say the row and the column of each pixel, counted from 1; padding is 0."""
    lines = torch.arange(1, pixels + 1, dtype=torch.uint8)
    return torch.stack([lines[:, None].expand(-1, pixels), lines[None].expand(pixels, -1)]).expand(num, -1, -1, -1)


def corners(crops: Tensor, padding: tuple[int, int]) -> list[tuple[int, int]]:
    """Where crops of ``coordinates`` were cut out of the padded (left, top) images: (top, left)."""
    found = []
    for crop in crops:
        row, column = (crop[0] > 0).nonzero()[0].tolist()  # any pixel that is not padding
        offsets = crop[:, row, column].tolist()
        found.append((offsets[0] - 1 + padding[1] - row, offsets[1] - 1 + padding[0] - column))
    return found


@pytest.mark.parametrize(
    ("arguments", "padding", "keywords"),
    [
        ([6, 2], [2, 2, 2, 2], {}),
        ([[4, 5]], [0, 0, 0, 0], {}),
        ({"size": [5, 4], "padding": [1, 2, 3, 4]}, [1, 2, 3, 4], {}),
        ({"size": 6, "padding": [1, 2], "fill": 9}, [1, 2, 1, 2], {"fill": 9}),
        ({"size": 6, "padding": 2, "fill": [9, 8]}, [2, 2, 2, 2], {"fill": [9, 8]}),
        ({"size": 6, "padding": 2, "padding_mode": "reflect"}, [2, 2, 2, 2], {"padding_mode": "reflect"}),
        ({"size": 6, "padding": 2, "padding_mode": "edge"}, [2, 2, 2, 2], {"padding_mode": "edge"}),
    ],
)
def test_random_crop_is_that_of_torchvision(arguments: object, padding: list[int], keywords: dict[str, Any]) -> None:
    """Zeros around show where the crops lie; the same draws then cut other images, padded in any way."""
    zeros = arguments
    if isinstance(arguments, dict):
        zeros = {key: value for key, value in arguments.items() if key not in ("fill", "padding_mode")}
    ids, given = torch.arange(60), images(60, channels=2)
    cut = Augmentation({"RandomCrop": zeros}, seed=1)(coordinates(60, 6), ids, 0)
    found = Augmentation({"RandomCrop": arguments}, seed=1)(given, ids, 0)
    padded = functional.pad(given, padding, **keywords)
    for index, (top, left) in enumerate(corners(cut, (padding[0], padding[1]))):
        assert torch.equal(found[index], functional.crop(padded[index], top, left, *found.shape[-2:]))


def test_random_flip_is_that_of_torchvision() -> None:
    for name, mirror in [("RandomHorizontalFlip", "hflip"), ("RandomVerticalFlip", "vflip")]:
        given = images(60)
        found = Augmentation({name: 0.5}, seed=0)(given, torch.arange(60), 0)
        mirrored = getattr(functional, mirror)(given)
        chosen = (found == mirrored).flatten(1).all(1)
        assert 10 < int(chosen.sum()) < 50
        assert torch.equal(found[~chosen], given[~chosen])


def test_random_erasing_is_that_of_torchvision() -> None:
    for value in [0, 200, [1, 2, 3]]:
        given = torch.full((300, 3, 16, 12), 77, dtype=torch.uint8)
        arguments = {"p": 0.5, "scale": [0.05, 0.3], "ratio": [0.5, 2.0], "value": value}
        found = Augmentation({"RandomErasing": arguments}, seed=0)(given, torch.arange(300), 0)
        erased, fill = 0, torch.tensor(value, dtype=torch.uint8).view(-1, 1, 1)
        for before, after in zip(given, found, strict=True):
            rows, columns = (after != before).any(0).nonzero(as_tuple=True)
            if len(rows) == 0:
                continue
            erased += 1
            top, left = int(rows.min()), int(columns.min())
            height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
            assert torch.equal(after, functional.erase(before, top, left, height, width, fill))
            assert (height + 0.5) * (width + 0.5) >= 0.05 * 192  # the sides are rounded
            assert (height - 0.5) * (width - 0.5) <= 0.3 * 192
            assert (height - 0.5) / (width + 0.5) <= 2.0
            assert (height + 0.5) / (width - 0.5) >= 0.5
        assert 110 < erased < 190  # p = 0.5, 4.6 standard deviations


def test_rectangles_are_those_torchvision_could_draw() -> None:
    table = batched.rectangles(16, 12, (0.02, 0.33), (0.3, 3.3))
    assert table.dtype == torch.int64
    height, width = table.unbind(1)
    assert int(height.max()) < 16
    assert int(width.max()) < 12
    area = (height * width).double()
    assert float(area.mean()) == pytest.approx(0.175 * 192, rel=0.1)  # the middle of the scale
    wide = batched.rectangles(1000, 1000, (0.1, 0.1), (0.5, 2.0)).double().log()
    ratio = (wide[:, 0] - wide[:, 1]).sort().values  # log-uniform: equally spaced logarithms
    assert torch.allclose(ratio, torch.linspace(-1, 1, len(ratio), dtype=torch.float64) * np.log(2), atol=0.01)


# Distribution of the draws


def test_frequencies_are_the_probabilities() -> None:
    for p in [0.0, 0.1, 0.5, 0.9, 1.0]:
        for name in ["RandomHorizontalFlip", "RandomVerticalFlip", "RandomErasing"]:
            given = coordinates(10_000, 8)
            large = {"scale": [0.1, 0.3]} if name == "RandomErasing" else {}  # no rectangle rounds to no pixel
            found = Augmentation({name: {"p": p, **large}}, seed=0)(given, torch.arange(10_000), 0)
            changed = (found != given).flatten(1).any(1).double().mean()
            assert abs(float(changed) - p) <= 5 * (p * (1 - p) / 10_000) ** 0.5


def test_corners_of_crops_are_uniform() -> None:
    for step in [0, 1]:
        crops = Augmentation({"RandomCrop": [6, 2]}, seed=0)(coordinates(5000, 6), torch.arange(5000), step)
        counts = torch.zeros(5, 5)
        for top, left in corners(crops, (2, 2)):
            counts[top, left] += 1
        assert float(((counts - 200).square() / 200).sum()) < 62.0  # chi-square, 24 degrees of freedom, p = 3e-5


def test_sizes_and_corners_of_erasing_fill_the_image() -> None:
    given = torch.zeros(4000, 1, 8, 8, dtype=torch.uint8)
    arguments = {"p": 1.0, "scale": [0.1, 0.4], "value": 1}
    found = Augmentation({"RandomErasing": arguments}, seed=0)(given, torch.arange(4000), 0)
    assert int(found.sum((1, 2, 3)).unique().numel()) > 10
    heat = found.double().mean((0, 1))
    torch.testing.assert_close(heat, heat.flip(0), atol=0.05, rtol=0)
    torch.testing.assert_close(heat, heat.flip(1), atol=0.05, rtol=0)
    assert float(heat.min()) > 0.01


# Any transform by name

BY_NAME: dict[str, Any] = {
    "AugMix": None,
    "AutoAugment": "cifar10",
    "CenterCrop": 4,
    "ColorJitter": {"brightness": 0.4, "hue": 0.1},
    "ElasticTransform": {"alpha": 10, "sigma": 1},
    "GaussianBlur": 3,
    "Grayscale": 3,
    "Identity": None,
    "Pad": [1, 128],
    "RandAugment": None,
    "RandomAdjustSharpness": 2,
    "RandomAffine": {"degrees": 10, "translate": [0.1, 0.1]},
    "RandomAutocontrast": None,
    "RandomChannelPermutation": None,
    "RandomEqualize": None,
    "RandomGrayscale": 0.5,
    "RandomInvert": None,
    "RandomPerspective": None,
    "RandomPhotometricDistort": None,
    "RandomPosterize": 3,
    "RandomResizedCrop": {"size": 8, "interpolation": "Bicubic"},
    "RandomRotation": [15],
    "RandomSolarize": 100,
    "Resize": [[5, 5]],
    "TrivialAugmentWide": None,
    "randomhorizontalflip": None,
}


@pytest.mark.parametrize("name", BY_NAME)
def test_any_transform_works_by_name(name: str) -> None:
    state = torch.get_rng_state()
    augmentation, given, ids = Augmentation({name: BY_NAME[name]}, seed=0), images(5, pixels=8), torch.arange(5)
    found = augmentation(given, ids, 0)
    assert found.dtype == torch.uint8
    assert found.shape[:2] == (5, 3)
    assert torch.equal(augmentation(given[2:3], ids[2:3], 0), found[2:3])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["Resize", "CenterCrop", "RandomResizedCrop"])
def test_two_integers_are_height_and_width(name: str) -> None:
    given, ids = images(3, pixels=8), torch.arange(3)
    found, expected = (Augmentation({name: size}, seed=0)(given, ids, 0) for size in ([4, 6], [[4, 6]]))
    assert found.shape == (3, 3, 4, 6)
    assert torch.equal(found, expected)


def test_padding_on_demand_is_left_to_torchvision() -> None:
    arguments = {"size": 8, "pad_if_needed": True}
    assert Augmentation({"RandomCrop": arguments}, seed=0)(images(2), torch.arange(2), 0).shape == (2, 3, 8, 8)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_any_size_of_image_can_be_flipped_and_erased(height: int, width: int) -> None:
    given = torch.randint(256, (5, 1, height, width), dtype=torch.uint8)
    augmentation = Augmentation({"RandomHorizontalFlip": 0.5, "RandomVerticalFlip": 0.5}, seed=0)
    assert augmentation(given, torch.arange(5), 0).shape == given.shape
    try:
        erased = Augmentation({"RandomErasing": {"scale": [0.3, 0.5]}}, seed=0)(given, torch.arange(5), 0)
    except ValueError as error:
        assert "data.augmentations_train.RandomErasing: no rectangle of this scale" in str(error)  # noqa: PT017
        assert min(height, width) < 4
    else:
        assert erased.shape == given.shape


# Messages


def test_names_that_cannot_be_used_say_why() -> None:
    for name, message in [
        ("RandomHorizontalFlp", "similar names: RandomHorizontalFlip"),
        ("Crop", "RandomCrop"),
        ("zzzzzz", "similar names: CenterCrop, Pad, RandomCrop, RandomErasing"),
        ("Transform", "not a torchvision v2 transform"),
        ("functional", "not a torchvision v2 transform"),
        ("CutMix", "mixes labels; only transforms of single images"),
        ("mixup", "mixes labels"),
    ]:
        with pytest.raises(ValueError, match=rf"data.augmentations_val.{name}: .*{message}"):
            Augmentation({name: None}, seed=0, key="data.augmentations_val")


def test_wrong_arguments_name_the_key_and_what_it_takes() -> None:
    for name, arguments in [
        ("RandomCrop", None),
        ("RandomCrop", {"sizes": 32}),
        ("RandomCrop", [32, 4, False, 0, "constant", 1]),
        ("RandomCrop", "large"),
        ("RandomHorizontalFlip", 1.5),
        ("RandomHorizontalFlip", "often"),
        ("RandomErasing", {"value": "random"}),
        ("RandomErasing", {"value": 0.5}),
        ("RandomErasing", {"value": 256}),
        ("RandomErasing", {"scale": [0.5, 0.1]}),
        ("RandomResizedCrop", {"size": 8, "interpolation": "best"}),
        ("AutoAugment", "mnist"),
        ("ColorJitter", -1),
        ("Identity", 3),
    ]:
        with pytest.raises(ValueError, match=rf"data.augmentations_train.{name}: wrong arguments .* accepted: \w+"):
            Augmentation({name: arguments}, seed=0)


def test_transforms_that_do_not_fit_the_images_are_named() -> None:
    for name, arguments, message in [
        ("RandomCrop", [11, 2], r"images of 6x6 pixels, padded by \[2, 2, 2, 2\] .* smaller than the crop of 11x11"),
        ("RandomErasing", {"value": [1, 2]}, "value has 2 entries, but the images have 3 channels"),
        ("RandomErasing", {"scale": [0.99, 1.0]}, "no rectangle of this scale and ratio fits into 6x6 pixels"),
        ("ToDtype", [torch.float32], r"returns torch.float32 \[3, 6, 6\]; images must stay torch.uint8"),
        ("ToPILImage", None, "returns Image"),
        ("FiveCrop", 3, "returns tuple"),
        ("RandomResize", [4, 20], "returns images of different sizes"),
        ("Normalize", [[0.5] * 3, [0.5] * 3], "float"),
        ("Pad", {"padding": 9, "padding_mode": "reflect"}, "[Pp]adding size"),
        ("RandomCrop", {"size": 6, "padding": 9, "padding_mode": "reflect"}, "[Pp]adding size"),
        ("ElasticTransform", None, "[Pp]adding size"),
        ("Resize", [6, 8.5], "arguments: size, interpolation, max_size, antialias"),
    ]:
        augmentation = Augmentation({name: arguments}, seed=0)
        with pytest.raises(ValueError, match=f"data.augmentations_train.{name}: .*{message}"):
            augmentation(images(20), torch.arange(20), 0)
