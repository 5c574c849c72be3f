"""Databases of frozen copies: a function of (seed, round, sample) whoever builds them, and whole or refused."""

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from block_loading import block_loader
from filelock import FileLock
from torch import Tensor

from fullbatch.data.augmentation import Augmentation, augmentation_seed
from fullbatch.data.frozen import build as lmdb_build
from fullbatch.data.frozen import store
from fullbatch.data.frozen.build import Writing, stored_images, temporary_images
from fullbatch.data.frozen.copies import Recipe
from fullbatch.data.frozen.store import Environment, StoredImages
from fullbatch.data.images import ImageSet, TensorImages
from fullbatch.runtime.lmdb import DamagedDatabaseError, LMDBOptions
from fullbatch.runtime.stop_requests import InterruptedWork, interruption

TRANSFORMS = {"RandomCrop": [8, 1], "RandomHorizontalFlip": 0.5, "RandomRotation": 20}
COUNT, ROUNDS = 90, 4
SMALL_PIECES = Writing(write_frequency=20)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def images(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (COUNT, 3, 8, 8), generator=generator, dtype=torch.uint8)


def recipe(**options: Any) -> Recipe:
    source = ImageSet(TensorImages(images()), torch.arange(COUNT) % 3, ("a", "b", "c"))
    return Recipe(**{"name": "x", "source": source, "transforms": TRANSFORMS, "seed": 5, "rounds": ROUNDS, **options})


def build(folder: Path, some_recipe: Recipe | None = None, writing: Writing = SMALL_PIECES) -> StoredImages:
    return stored_images(some_recipe or recipe(), folder / "db", LMDBOptions(), writing)


def everything(stored: StoredImages) -> Tensor:
    return stored.fetch(torch.arange(len(stored)))


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("template")).folder


@pytest.fixture
def built(template: Path, tmp_path: Path) -> StoredImages:
    shutil.copytree(template, tmp_path / "db")
    return build(tmp_path)


def test_copies_are_the_augmentation_of_the_round(built: StoredImages) -> None:
    ids, augmentation = torch.arange(COUNT), Augmentation(TRANSFORMS, augmentation_seed(5))
    expected = torch.cat([augmentation(images(), ids, step) for step in range(ROUNDS)])
    assert len(built) == ROUNDS * COUNT
    assert torch.equal(everything(built), expected)
    mixed = torch.randperm(len(built))
    assert torch.equal(built.fetch(mixed), expected[mixed])
    moving = StoredImages(built.folder, built.manifest, LMDBOptions(access="cursor"))
    assert torch.equal(moving.fetch(mixed), expected[mixed])


@pytest.mark.slow
@pytest.mark.parametrize(
    "writing",
    [Writing(), Writing(num_workers=2), Writing(write_frequency=7, shuffle=False), Writing(write_frequency=33)],
)
def test_the_digest_does_not_depend_on_who_writes_how(tmp_path: Path, built: StoredImages, writing: Writing) -> None:
    other = build(tmp_path / "other", writing=writing)
    assert other.checksum() == built.checksum()
    assert torch.equal(everything(other), everything(built))


@pytest.mark.slow
def test_the_digest_says_whether_anything_differs(tmp_path: Path, built: StoredImages) -> None:
    labels = ImageSet(TensorImages(images()), torch.zeros(COUNT, dtype=torch.int64), ("a", "b", "c"))
    others = [recipe(seed=6), recipe(rounds=3), recipe(first_round_clean=True), recipe(source=labels)]
    digests = [build(tmp_path / str(number), other).checksum() for number, other in enumerate(others)]
    assert len({built.checksum(), *digests}) == 5


def test_records_are_laid_down_in_a_mixed_order_when_asked(tmp_path: Path) -> None:
    """By the positions of the values in the file."""

    def places(shuffle: bool) -> np.ndarray:
        folder = build(tmp_path / str(shuffle), recipe(rounds=1), Writing(shuffle=shuffle)).folder
        content = (folder / "data.mdb").read_bytes()
        environment = store.opened(folder, LMDBOptions())
        return np.array([content.index(value) for _, value in environment.records()])

    assert (np.diff(places(False)) > 0).mean() != pytest.approx((np.diff(places(True)) > 0).mean(), abs=0.1)


def test_the_first_round_may_be_clean(tmp_path: Path) -> None:
    stored = build(tmp_path, recipe(first_round_clean=True))
    assert torch.equal(stored.fetch(torch.arange(COUNT)), images())
    assert torch.equal(
        stored.fetch(torch.arange(COUNT) + COUNT),
        Augmentation(TRANSFORMS, augmentation_seed(5))(images(), torch.arange(COUNT), 1),
    )
    with pytest.raises(ValueError, match=r"data\.db\.first_round_clean=True: .* changes the size"):
        recipe(first_round_clean=True, transforms={"RandomCrop": 6}).manifest()


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "num_workers"), [(32, 2), (128, 0)])
def test_blocks_of_a_round_are_those_of_the_step_on_the_fly(
    built: StoredImages, batch_size: int, num_workers: int
) -> None:
    labels = torch.arange(COUNT) % 3
    options: Any = {"batch_size": batch_size, "seed": 2}
    frozen = ImageSet(built, labels.repeat(ROUNDS), ("a", "b", "c"))
    reading = block_loader(frozen, caching=False, num_workers=num_workers, rounds=ROUNDS, **options)
    live = block_loader(recipe().source, augmentation=Augmentation(TRANSFORMS, augmentation_seed(5)), **options)
    for step in (0, 1, 3):
        for found, expected in zip(reading.blocks(step, shuffle=True), live.blocks(step, shuffle=True), strict=True):
            assert torch.equal(found.inputs, expected.inputs)
            assert torch.equal(found.labels, expected.labels)
            assert found.key == expected.key
    again = torch.cat([block.inputs for block in reading.blocks(ROUNDS + 1)])
    assert torch.equal(again, torch.cat([block.inputs for block in reading.blocks(1)]))
    whole = block_loader(frozen, **options).blocks(0)
    assert sum(whole.sizes) == ROUNDS * COUNT
    steps = [block.inputs for step in range(ROUNDS) for block in live.blocks(step)]
    assert torch.equal(torch.cat([block.inputs for block in whole]), torch.cat(steps))


@dataclass(frozen=True)
class Signalling:
    """Images whose reading at the ``left``-th time brings a signal to this process."""

    tensor: Tensor
    left: list[int]
    number: signal.Signals

    def __len__(self) -> int:
        return len(self.tensor)

    def fetch(self, ids: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] == 0:
            os.kill(os.getpid(), self.number)
        return self.tensor[ids]

    def checksum(self) -> str:
        return TensorImages(self.tensor).checksum()


def signalling(left: list[int], number: signal.Signals = signal.SIGKILL) -> Recipe:
    source = recipe().source
    return recipe(source=ImageSet(Signalling(images(), left, number), source.labels, source.classes))


def in_a_fork(work: Callable[[], object]) -> int:
    """Start ``work`` in a process of its own; return its number."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def present(folder: Path) -> int:
    environment = Environment(folder, LMDBOptions(map_size=1 << 24))
    try:
        return len(environment)
    finally:
        environment.close()


@pytest.mark.slow
def test_five_kills_change_no_byte_and_nothing_is_written_twice(tmp_path: Path, built: StoredImages) -> None:
    chance, folder, found = random.Random(0), tmp_path / "killed", [0]
    for _ in range(5):
        some = signalling([chance.randint(4, 6)])
        _, status = os.waitpid(in_a_fork(lambda some=some: build(folder, some)), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        found.append(present(folder / ".db.building"))
    assert found == sorted(found)
    assert 0 < found[-1] < ROUNDS * COUNT
    readings = [1000]
    stored = build(folder, signalling(readings))
    missing_pieces = ROUNDS * COUNT - found[-1]
    assert 1000 - readings[0] <= missing_pieces // 20 + ROUNDS + 2  # two to look at shapes
    assert stored.checksum() == built.checksum()
    assert not (folder / ".db.building").exists()


def test_a_kill_at_any_time_is_survived(tmp_path: Path, built: StoredImages) -> None:
    for delay in (0.0, 0.01, 0.03, 0.05):
        child = in_a_fork(lambda: build(tmp_path / "late", writing=Writing(write_frequency=3)))
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert build(tmp_path / "late").checksum() == built.checksum()


def test_one_builds_and_the_others_wait(tmp_path: Path, built: StoredImages) -> None:
    log = tmp_path / "builders"

    def work() -> None:
        original = lmdb_build._write

        def noted(*arguments: Any) -> None:
            with log.open("a") as file:
                file.write("built\n")
            original(*arguments)

        lmdb_build._write = noted
        assert build(tmp_path / "shared").checksum() == built.checksum()

    children = [in_a_fork(work) for _ in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert log.read_text() == "built\n"


CHANGES: dict[str, Any] = {
    "seed: 5 there, 6 here": {"seed": 6},
    r"transforms: .*RandomRotation.* there": {"transforms": {"RandomCrop": [8, 1]}},
    "first_round_clean: False there, True here": {"first_round_clean": True},
    "source: .* there": {
        "source": ImageSet(TensorImages(images(1)), torch.arange(COUNT) % 3, ("a", "b", "c")),
    },
}


@pytest.mark.slow
def test_other_images_are_refused_and_kept_unless_rebuilt(tmp_path: Path, built: StoredImages) -> None:
    before = (built.folder / "data.mdb").read_bytes()
    for message, change in CHANGES.items():
        with pytest.raises(ValueError, match=f"db: holds other images .*{message}.*rebuild_existing_database=True"):
            build(tmp_path, recipe(**change))
        assert (built.folder / "data.mdb").read_bytes() == before
    rebuilt = build(tmp_path, recipe(**change), Writing(rebuild=True))
    assert rebuilt.checksum() == build(tmp_path / "elsewhere", recipe(**change)).checksum()
    with pytest.raises(ValueError, match="holds other images"):
        built.fetch(torch.arange(1))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "elsewhere") == [".db.lock", "db"]


@pytest.mark.slow
def test_an_unfinished_one_of_other_images_is_refused_too(tmp_path: Path) -> None:
    os.waitpid(in_a_fork(lambda: build(tmp_path, signalling([6]))), 0)
    with pytest.raises(ValueError, match=r"\.db\.building: holds other images .*seed"):
        build(tmp_path, recipe(seed=6))
    assert len(build(tmp_path, recipe(seed=6), Writing(rebuild=True))) == ROUNDS * COUNT


def spoil(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def test_a_damaged_image_is_named(built: StoredImages) -> None:
    path, number = built.folder / "data.mdb", 2 * COUNT + 7
    record = dict(store.opened(built.folder, LMDBOptions()).records())[(2).to_bytes(4, "big") + (7).to_bytes(4, "big")]
    spoil(path, path.read_bytes().index(record) + 50, b"damage")
    with pytest.raises(OSError, match="sample 7 in round 2 is damaged"):
        built.fetch(torch.tensor([3, number]))
    assert len(built.fetch(torch.tensor([3, number - 1]))) == 2
    labels = torch.zeros(len(built), dtype=torch.int64)
    reading = block_loader(ImageSet(built, labels, ("a",)), batch_size=64, caching=False, num_workers=1)
    with pytest.raises(OSError, match="sample 7 in round 2 is damaged") as raised:
        list(reading.blocks(0))
    assert "Traceback" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content", [b"", b"a letter", b"\0" * 20_000, None], ids=["empty", "foreign", "zeros", "truncated"]
)
def test_a_damaged_file_is_refused_and_stays(tmp_path: Path, built: StoredImages, content: bytes | None) -> None:
    path = built.folder / "data.mdb"
    store.close(built.folder)
    path.write_bytes(path.read_bytes()[:30_000] if content is None else content)
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"db: not an intact database of this program .*rebuild_existing_database=True"):
        build(tmp_path)
    assert path.read_bytes() == before
    assert len(everything(build(tmp_path, writing=Writing(rebuild=True)))) == ROUNDS * COUNT


def require_right_or_refused(folder: Path, position: int, damaged: int) -> bool:
    """Change a byte of the database; return whether it is refused, which leaves it unchanged."""
    path = folder / "db" / "data.mdb"
    content, expected = path.read_bytes(), everything(build(folder))
    store.close(path.parent)
    spoil(path, position, bytes([damaged]))
    before = path.read_bytes()
    try:
        assert torch.equal(everything(build(folder)), expected)
        return False
    except DamagedDatabaseError:
        assert path.read_bytes() == before
        return True
    finally:
        store.close(path.parent)
        path.write_bytes(content)


def test_a_damaged_page_ends_no_process(tmp_path: Path, built: StoredImages) -> None:
    """Of a page, the first bytes say where its records are: LMDB reads what lies there, inside of the file or not."""
    pages = (built.folder / "data.mdb").stat().st_size // 4096
    places = [page * 4096 + place for page in range(2, pages, 9) for place in (13, 17)]
    assert sum(require_right_or_refused(tmp_path, place, 0xFF) for place in places) > len(places) // 4


@pytest.mark.soak
def test_a_flipped_bit_anywhere_is_refused_or_without_effect(tmp_path: Path, built: StoredImages) -> None:
    content, generator = (built.folder / "data.mdb").read_bytes(), random.Random(0)
    for _ in range(200):
        position = generator.randrange(len(content))
        require_right_or_refused(tmp_path, position, content[position] ^ (1 << generator.randrange(8)))


def test_damaged_records_of_an_unfinished_one_are_written_anew(tmp_path: Path, built: StoredImages) -> None:
    unfinished = tmp_path / "other" / ".db.building"
    shutil.copytree(built.folder, unfinished)
    with Environment(unfinished, LMDBOptions(map_size=1 << 24)).lmdb as environment:
        table = environment.open_db(b"pictures")
        with environment.begin(write=True, db=table) as transaction:
            key, value = next(iter(transaction.cursor()))
            transaction.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    assert torch.equal(everything(build(tmp_path / "other")), everything(built))


def test_unknown_samples_in_an_unfinished_one_are_refused(tmp_path: Path, built: StoredImages) -> None:
    unfinished = tmp_path / "other" / ".db.building"
    shutil.copytree(built.folder, unfinished)
    with Environment(unfinished, LMDBOptions(map_size=1 << 24)).lmdb as environment:
        table = environment.open_db(b"pictures")
        with environment.begin(write=True, db=table) as transaction:
            transaction.put((ROUNDS).to_bytes(4, "big") + bytes(4), b"")
    with pytest.raises(OSError, match="it has samples or rounds that do not exist"):
        build(tmp_path / "other")
    build(tmp_path / "other", writing=Writing(rebuild=True))


@pytest.mark.parametrize("rebuild", [False, True])
def test_too_little_address_space_is_no_damage(
    tmp_path: Path, built: StoredImages, monkeypatch: pytest.MonkeyPatch, rebuild: bool
) -> None:
    def refuse(path: str, **_: object) -> None:
        raise lmdb.MemoryError(f"{path}: Cannot allocate memory")

    store.close(built.folder)
    monkeypatch.setattr(lmdb, "open", refuse)
    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(OSError, match=r"db.*: needs \S+ MiB of address space.*ulimit -v.*data\.db\.rounds"):
            build(folder, writing=Writing(rebuild=rebuild))


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path / "db")) as foreign, foreign.begin(write=True) as transaction:
        transaction.put(b"theirs", b"precious")
    with pytest.raises(OSError, match="not an intact database of this program"):
        build(tmp_path)


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_the_next_run_continues(tmp_path: Path, built: StoredImages) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match=r"\.db\.building: cannot be written .* the next run continues"):
            build(tmp_path / "full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert present(tmp_path / "full" / ".db.building") > 0
    assert build(tmp_path / "full").checksum() == built.checksum()


@pytest.mark.slow
def test_a_signal_stops_a_build_soon_and_the_next_start_continues(tmp_path: Path, built: StoredImages) -> None:
    some = signalling([5], signal.SIGTERM)
    with interruption() as caught, pytest.raises(InterruptedWork) as stopped:
        build(tmp_path / "late", some)
    assert caught.exit_status == 128 + signal.SIGTERM
    written = present(tmp_path / "late" / ".db.building")
    assert 20 <= written <= 60  # two readings look at shapes
    assert str(stopped.value).startswith(f"{tmp_path}/late/db: stopped with {written} of 360 images written; the next")
    readings = [1000]
    assert build(tmp_path / "late", signalling(readings)).checksum() == built.checksum()
    assert 1000 - readings[0] <= (360 - written) // 20 + ROUNDS + 2


@pytest.mark.slow
def test_a_signal_within_a_piece_keeps_what_is_there(
    tmp_path: Path, built: StoredImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_build, "CHUNK", 10)
    some = signalling([5], signal.SIGTERM)
    with interruption(), pytest.raises(InterruptedWork):
        build(tmp_path / "late", some, Writing())
    assert present(tmp_path / "late" / ".db.building") == 30
    assert build(tmp_path / "late").checksum() == built.checksum()


def test_a_signal_ends_waiting_for_another_builder(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".db.lock"), interruption() as caught:
        caught.receive(signal.SIGTERM, None)
        with pytest.raises(InterruptedWork, match="another process is building"):
            build(tmp_path)


def test_too_little_space_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100_000))
    with pytest.raises(OSError, match=r"needs about [\d.]+ [KM]iB, but only [\d.]+ [KM]iB of the disk are free"):
        build(tmp_path)
    monkeypatch.undo()
    assert present(tmp_path / ".db.building") == 0


@pytest.mark.slow
def test_a_read_only_folder_serves_who_only_reads(tmp_path: Path, built: StoredImages) -> None:
    checksum = built.checksum()
    store.close(built.folder)
    (built.folder / "lock.mdb").unlink()

    def read() -> None:
        os.access = lambda path, mode: mode != os.W_OK  # type: ignore[assignment]
        assert build(tmp_path).checksum() == checksum
        assert not (built.folder / "lock.mdb").exists()

    assert os.waitpid(in_a_fork(read), 0)[1] == 0


@pytest.mark.slow
def test_a_temporary_one_goes_with_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stored = temporary_images(recipe(), LMDBOptions(), Writing())
    (made,) = tmp_path.glob("fullbatch-*")  # libraries put folders of their own beside it
    assert stored.folder.parent == made
    labels = torch.zeros(len(stored), dtype=torch.int64)
    reading = block_loader(ImageSet(stored, labels, ("a",)), batch_size=64, caching=False, num_workers=2)
    assert len(list(reading.blocks(0))) == len(list(reading.blocks(1))) == 6
    del reading, stored
    assert not list(tmp_path.glob("fullbatch-*"))
