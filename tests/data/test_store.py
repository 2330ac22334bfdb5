from __future__ import annotations

from pathlib import Path

import pytest

from kintsugi.data.store import Store


def test_the_cache_is_the_given_folder_or_that_of_the_environment_or_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KINTSUGI_CACHE", "~/elsewhere")
    assert Store(cache=Path("~/given")).root == tmp_path / "given"
    assert Store().root == tmp_path / "elsewhere"
    assert Store().downloads == tmp_path / "elsewhere/torchvision"
    monkeypatch.setenv("KINTSUGI_CACHE", "")
    assert Store().root == tmp_path / ".cache/kintsugi"


def test_the_short_side_holds_the_crop():
    assert Store().side_for(64) == 96
    assert Store(short_side=64).side_for(64) == 64
    with pytest.raises(ValueError, match="--short-side 63 is less than --size 64"):
        Store(short_side=63).side_for(64)


@pytest.mark.parametrize(
    ("count", "listed", "expected"),
    [
        (1, None, "photos: skipped 1 of 9 images: a\n"),
        (3, Path("list.txt"), "photos: skipped 3 of 9 images: a, b, c\n"),
        (5, None, "photos: skipped 5 of 9 images: a, b, c and 2 more\n"),
        (5, Path("list.txt"), "photos: skipped 5 of 9 images: a, b, c and 2 more, listed in list.txt\n"),
    ],
)
def test_skipped_items_are_reported_in_one_line(
    count: int, listed: Path | None, expected: str, capsys: pytest.CaptureFixture[str]
):
    Store().report_skipped("photos", list("abcde")[:count], 9, "images", listed)
    assert capsys.readouterr().err == expected
    Store(quiet=True).report_skipped("photos", list("abcde")[:count], 9, "images", listed)
    assert capsys.readouterr().err == ""
