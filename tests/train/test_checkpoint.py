from __future__ import annotations

import errno
import os
import pickle
import random
from pathlib import Path

import pytest
import torch

from kintsugi.nets.backbones import Backbone
from kintsugi.train import checkpoint


def content(step: int = 1, method: str = "toy") -> dict[str, object]:
    return {"method": method, "step": step, "config": {}, "state": {"w": torch.arange(3.0)}, "encoders": {}}


def test_what_is_saved_is_loaded_and_nothing_else_stays(tmp_path: Path):
    path = tmp_path / "run" / "step-00000001.pt"
    checkpoint.save(path, content())
    assert torch.equal(checkpoint.load(path, "toy")["state"]["w"], torch.arange(3.0))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_find_returns_the_newest_whole_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for step in (2, 10, 9):
        checkpoint.save(tmp_path / f"step-{step:08d}.pt", content(step))
    newest = tmp_path / "step-00000010.pt"
    assert checkpoint.find(tmp_path) == newest
    newest.write_bytes(newest.read_bytes()[:200])  # as if another program had been killed while it copied the file
    assert checkpoint.find(tmp_path) == tmp_path / "step-00000009.pt"
    assert "not a whole checkpoint" in capsys.readouterr().err
    assert checkpoint.find(newest) == newest  # a named file is returned as it is; load reports the damage
    with pytest.raises(ValueError, match=r"use the one before it, .*step-00000009.pt"):
        checkpoint.load(newest)


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path: Path):
    """torch itself would load flipped weights silently: it never checks the checksums that it writes."""
    path = tmp_path / "step-00000001.pt"
    weights = torch.arange(500.0)
    checkpoint.save(path, {**content(), "state": {"w": weights}})
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(200):
        place = draw.randrange(len(whole))
        flipped = bytes([whole[place] ^ 1 << draw.randrange(8)])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        try:
            found = checkpoint.load(path)
        except ValueError:
            refused += 1
        else:
            assert torch.equal(found["state"]["w"], weights)  # the flipped bit was in padding, a date or the like
            assert {**found, "state": 0} == {**content(), "format": checkpoint.FORMAT, "state": 0}
    assert refused > 100


def test_prune_keeps_the_newest_and_the_named(tmp_path: Path):
    for name in ("step-00000001.pt", "step-00000002.pt", "step-00000003.pt", "best.pt", "before-adversary.pt"):
        checkpoint.save(tmp_path / name, content())
    checkpoint.prune(tmp_path, 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before-adversary.pt", "best.pt", "step-00000003.pt"]


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.mark}",)


def test_a_pickle_with_code_is_never_run(tmp_path: Path):
    mark = tmp_path / "ran"
    torch.save({"format": checkpoint.FORMAT, "method": "toy", "state": Payload(mark)}, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(mark)))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ValueError, match="not a whole checkpoint"):
            checkpoint.load(tmp_path / name)
    assert not mark.exists()


def test_foreign_files_are_refused_in_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="no checkpoint at"):
        checkpoint.load(tmp_path / "none.pt")
    with pytest.raises(ValueError, match="no checkpoint at"):
        checkpoint.find(tmp_path / "none")
    with pytest.raises(ValueError, match="no whole checkpoint in"):
        checkpoint.find(tmp_path)
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pt")
    torch.save({"format": checkpoint.FORMAT, "method": "toy"}, tmp_path / "empty.pt")
    for name in ("weights.pt", "empty.pt"):
        with pytest.raises(ValueError, match="not a checkpoint of this project"):
            checkpoint.load(tmp_path / name)
    checkpoint.save(tmp_path / "other.pt", content(method="colorization"))
    with pytest.raises(ValueError, match="of colorization, not of inpainting"):
        checkpoint.load(tmp_path / "other.pt", "inpainting")
    checkpoint.save(tmp_path / "future.pt", {**content(), "format": 99})
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.load(tmp_path / "future.pt")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_leaves_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    checkpoint.save(tmp_path / "step-00000001.pt", content())

    def half_written(data: object, file: object) -> None:
        file.write(b"half")  # type: ignore[attr-defined]
        raise error

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(OSError, match=r"could not write .*free some space.*last good checkpoint is .*00000001"):
        checkpoint.save(tmp_path / "step-00000002.pt", content(2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]


def test_an_encoder_is_rebuilt_without_its_method(tmp_path: Path):
    encoder = Backbone(name="dcgan").build().eval()
    saved = {**content(), "encoders": {"generator": {"spec": encoder.spec.plain(), "state": encoder.state_dict()}}}
    checkpoint.save(tmp_path / "step-00000001.pt", saved)
    image = torch.rand(1, 3, 64, 64)
    again = checkpoint.load_encoder(tmp_path)(image)
    for stride, features in encoder(image).items():
        assert torch.equal(again[stride], features)
    with pytest.raises(ValueError, match="has no discriminator: it has generator"):
        checkpoint.load_encoder(tmp_path, "discriminator")


@pytest.mark.parametrize("roles", [["generator", "discriminator"], ["encoder"]])
def test_without_a_role_the_first_encoder_is_loaded(roles: list[str], tmp_path: Path):
    specs = [Backbone(name="dcgan", width=0.25), Backbone(name="dcgan", width=0.125)]
    encoders = {
        role: {"spec": spec.plain(), "state": spec.build().state_dict()}
        for role, spec in zip(roles, specs, strict=False)
    }
    checkpoint.save(tmp_path / "step-00000001.pt", {**content(), "encoders": encoders})
    assert checkpoint.load_encoder(tmp_path).spec == specs[0]
    assert checkpoint.load_encoder(tmp_path, roles[-1]).spec == specs[len(roles) - 1]
