from __future__ import annotations

import threading

import pytest
import torch

from core.data import cores


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("count", "few"), [(1, 1), (7, 2), (12, 100), (64, 5), (2, 1)])
def test_covers_each_once_in_slices_of_few(three_threads: None, count: int, few: int):
    seen = torch.zeros(count, dtype=torch.int64)
    lengths = []

    def work(rows: slice) -> None:
        seen[rows] += 1
        lengths.append(len(range(count)[rows]))

    cores.share(work, count, few)
    assert seen.eq(1).all()
    assert max(lengths) <= few


def test_each_thread_has_one_core_and_the_callers_keeps_its_own(three_threads: None):
    meet = threading.Barrier(3, timeout=60)  # so that no thread takes the work of two
    found = []

    def work(rows: slice) -> None:
        found.append((threading.get_ident(), torch.get_num_threads()))
        meet.wait()

    cores.share(work, 3, 1)
    assert len({thread for thread, _ in found}) == 3
    assert threading.get_ident() not in {thread for thread, _ in found}
    assert {threads for _, threads in found} == {1}
    assert torch.get_num_threads() == 3
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [3]


def test_shared_work_that_shares_goes_on_alone(three_threads: None):
    seen = torch.zeros(8, 4)

    def outer(rows: slice) -> None:
        me = threading.get_ident()

        def inner(columns: slice) -> None:
            assert threading.get_ident() == me
            seen[rows, columns] += 1

        cores.share(inner, 4, 1)

    cores.share(outer, 8, 1)
    assert seen.eq(1).all()


def test_an_error_is_raised_as_it_is(three_threads: None):
    def work(rows: slice) -> None:
        if rows.start == 4:
            raise ValueError("the fourth")

    with pytest.raises(ValueError, match="the fourth"):
        cores.share(work, 8, 1)
