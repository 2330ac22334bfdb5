from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from kintsugi.data.cache import Pixels, Source
from kintsugi.data.image_set import Images
from kintsugi.data.loader import Loader, Resident, resident
from kintsugi.rng import generator


def images(count: int) -> Images:
    """Image i is filled with i."""
    return Images(Source([str(i) for i in range(count)], lambda rows: [np.full((3, 4, 4), i, np.uint8) for i in rows]))


def indices(loader: Loader, start: int, steps: int) -> list[list[int]]:
    with loader.iterate(start) as batches:
        return [batch["index"].tolist() for batch in itertools.islice(batches, steps)]


@pytest.mark.parametrize(("count", "batch"), [(10, 4), (12, 4), (7, 5), (3, 8), (1, 2)])
def test_the_order_is_one_permutation_after_the_other(count: int, batch: int):
    sequence = [i for epoch in range(9) for i in torch.randperm(count, generator=generator(5, epoch)).tolist()]
    steps = len(sequence) // batch
    expected = [sequence[s * batch : (s + 1) * batch] for s in range(steps)]
    assert indices(Loader(images(count), batch, seed=5), 0, steps) == expected


def test_a_start_in_the_middle_continues_the_same_order():
    whole = indices(Loader(images(10), 4, seed=1), 0, 12)
    for start in range(12):
        assert indices(Loader(images(10), 4, seed=1), start, 12 - start) == whole[start:]


def test_a_start_reads_nothing_of_earlier_steps():
    read: list[int] = []

    def reader(rows: Sequence[int]) -> list[Pixels]:
        read.extend(rows)
        return [np.zeros((3, 4, 4), np.uint8) for _ in rows]

    loader = Loader(Images(Source([str(i) for i in range(100)], reader)), 2, seed=1, prefetch=1)
    first = indices(loader, 1_000_000, 1)[0]
    assert read[:2] == first
    assert len(read) <= 2 * 3


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_share_each_batch(world: int):
    alone = indices(Loader(images(10), 8, seed=2), 3, 5)
    ranks = [indices(Loader(images(10), 8, 2, rank, world), 3, 5) for rank in range(world)]
    assert [list(itertools.chain(*parts)) for parts in zip(*ranks, strict=True)] == alone


def test_no_image_comes_twice_in_an_epoch():
    seen = list(itertools.chain(*indices(Loader(images(12), 4, seed=3), 0, 6)))
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]


def test_seeds_differ():
    assert indices(Loader(images(50), 50, seed=0), 0, 1) != indices(Loader(images(50), 50, seed=1), 0, 1)


def test_a_batch_that_does_not_split_over_the_ranks_is_refused():
    with pytest.raises(ValueError, match=r"--batch 5 .* 2 ranks"):
        Loader(images(10), 5, seed=0, rank=0, world=2)


def test_batches_hold_the_images_of_their_indices():
    with Loader(images(20), 5, seed=0).iterate(0) as batches:
        for batch in itertools.islice(batches, 8):
            assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])


def test_an_error_in_the_thread_is_raised_unchanged():
    error = MemoryError("no more")

    def reader(rows: Sequence[int]) -> list[Pixels]:
        if 7 in rows:
            raise error
        return [np.zeros((3, 4, 4), np.uint8) for _ in rows]

    loader = Loader(Images(Source([str(i) for i in range(10)], reader)), 2, seed=0)
    good = next(step for step in range(5) if 7 in loader.indices(step))
    with loader.iterate(0) as batches:
        list(itertools.islice(batches, good))
        with pytest.raises(MemoryError) as met:
            next(batches)
    assert met.value is error
    assert any("reader" in frame.name for frame in met.traceback)


@pytest.mark.parametrize("taken", [0, 1, 20])
def test_no_thread_is_left(taken: int):
    def loaders() -> int:
        return sum(thread.name == "loader" for thread in threading.enumerate())

    before = loaders()
    with Loader(images(10), 2, seed=0).iterate(0) as batches:
        assert loaders() == before + 1
        list(itertools.islice(batches, taken))
    assert loaders() == before
    with pytest.raises(ZeroDivisionError), Loader(images(10), 2, seed=0).iterate(0):
        1 / 0  # noqa: B018
    assert loaders() == before
    context = Loader(images(10), 2, seed=0).iterate(0)
    context.__enter__()
    del context, batches  # left without closing
    gc.collect()
    assert loaders() == before


def test_a_closed_loader_does_not_block():
    with Loader(images(10), 2, seed=0).iterate(0) as batches:
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        list(batches)


def test_it_reads_prefetch_batches_ahead_and_no_more():
    read: list[int] = []

    def reader(rows: Sequence[int]) -> list[Pixels]:
        read.extend(rows)
        return [np.zeros((3, 4, 4), np.uint8) for _ in rows]

    with Loader(Images(Source([str(i) for i in range(50)], reader)), 1, seed=0, prefetch=3).iterate(0) as batches:
        for taken in (0, 1, 2):
            deadline = time.monotonic() + 10
            while len(read) < taken + 3 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.05)
            assert len(read) == taken + 3
            next(batches)


# --- on the device --------------------------------------------------------------------------------------------


def varied(count: int, labels: bool = True, planes: int = 3) -> Images:
    """A subset, in another order, of decoded images of many sizes."""
    rng = np.random.default_rng(0)
    extents = rng.integers(4, 12, (count + 5, 2))
    pixels: list[Pixels] = [rng.integers(0, 256, (planes, *extent), np.uint8) for extent in extents.tolist()]
    source = Source(
        [str(i) for i in range(count + 5)],
        lambda rows: [pixels[row] for row in rows],
        torch.from_numpy(rng.integers(-1, 3, count + 5)) if labels else None,
        "abc",
        planes=planes,
        extents=extents,
    )
    return Images(source).subset(torch.from_numpy(rng.permutation(count + 5)[:count]))


@pytest.mark.parametrize(("count", "labels", "planes"), [(600, True, 3), (10, False, 7), (1, True, 3)])
def test_resident_batches_are_those_of_the_images(count: int, labels: bool, planes: int):
    images = varied(count, labels, planes)
    kept = resident(images, torch.device("cpu"), 1.0)
    assert isinstance(kept, Resident)
    with Loader(images, 8, seed=3).iterate(5) as plain, Loader(kept, 8, seed=3).iterate(5) as selected:
        for one, other in itertools.islice(zip(plain, selected, strict=True), 100):
            assert one.keys() == other.keys()
            for name, value in one.items():
                assert value.dtype == other[name].dtype
                assert torch.equal(value, other[name])


def test_images_are_resident_up_to_the_limit():
    images, cpu = varied(50), torch.device("cpu")
    height, width = images.extents.amax(0).tolist()
    needed = 50 * 3 * height * width
    assert Resident.size(images) == needed
    kept = resident(images, cpu, needed / 1e9)
    assert isinstance(kept, Resident)
    assert len(kept) == 50
    assert kept.pixels.nbytes == needed
    assert resident(images, cpu, (needed - 1) / 1e9) is images
    assert resident(images, cpu, 0) is images
    assert resident(images, cpu, -1) is images  # on a GPU only
    undecoded = Images(Source(["a"], lambda rows: ["never read"]))
    assert resident(undecoded, cpu, 1.0) is undecoded


@pytest.mark.gpu
def test_resident_batches_are_the_same_on_the_gpu():
    images, gpu = varied(200), torch.device("cuda")
    kept = resident(images, gpu, -1)
    assert isinstance(kept, Resident)
    with Loader(images, 8, seed=3).iterate(0) as plain, Loader(kept, 8, 3, device=gpu).iterate(0) as selected:
        for one, other in itertools.islice(zip(plain, selected, strict=True), 50):
            assert {value.device.type for value in other.values()} == {"cuda"}
            assert all(torch.equal(value, other[name].cpu()) for name, value in one.items())


@pytest.mark.gpu
def test_batches_reach_the_gpu_whole():
    with Loader(images(200), 50, seed=0, device="cuda").iterate(0) as batches:
        for batch in itertools.islice(batches, 50):
            assert {value.device.type for value in batch.values()} == {"cuda"}
            assert torch.equal(batch["image"][:, 0, 0, 0].long(), batch["index"])
