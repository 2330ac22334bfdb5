from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)  # two pytest workers share two cores


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test reads or writes the user's cache; tests of one worker share one, as runs of one user do."""
    cache = tmp_path_factory.getbasetemp() / "kintsugi-cache"
    monkeypatch.setenv("KINTSUGI_CACHE", str(cache))
    yield cache
