from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kintsugi.eval.cells import Cell, Machine, Place, Row, Store, Subject, Task, figures, named, run, with_random
from kintsugi.nets.backbones import Backbone
from kintsugi.nets.encoder import Encoder
from kintsugi.nets.pixels import Pixels

CPU = Machine(torch.device("cpu"), bf16=False)


class Sums(Task):
    """The sum of the first weights, which tells rows and seeds apart; ``asked`` remembers what was computed."""

    name = "sums"
    protocols = ("once", "again")

    def __init__(self, steps: int = 1, failing: str = "") -> None:
        self.steps, self.failing = steps, failing
        self.asked: list[tuple[str, str, int]] = []
        self.built = 0

    def settings(self) -> Mapping[str, Any]:
        return {"steps": self.steps}

    def weights(self, encoder: Encoder) -> Tensor:
        self.built += 1
        return next(iter(encoder.state_dict().values()))

    def cell(self, subject: Subject, protocol: str, seed: int) -> Cell:
        self.asked.append((subject.row.name, protocol, seed))
        if (subject.row.name, protocol) == (self.failing, "again"):
            raise RuntimeError("no more\nroom")
        return Cell({protocol: subject.once(self.weights).sum().item()})


@pytest.fixture
def rows() -> list[Row]:
    torch.manual_seed(0)
    nets = [Backbone("alexnet").build() for _ in range(2)]
    one, two = (Row(name, net.spec.plain(), net.state_dict()) for name, net in zip(("one", "two"), nets, strict=True))
    return with_random([one, two])


def test_rows_of_one_network_share_random_weights(rows: list[Row]):
    assert [row.name for row in rows] == ["one", "random init (alexnet)", "two"]
    assert [row.base for row in rows] == ["random init (alexnet)", None, "random init (alexnet)"]
    others = [Row(str(i), Backbone("dcgan", width=width).plain(), {}) for i, width in enumerate((1, 0.5, 0.25))]
    assert [row.name for row in with_random(others)][1::2] == [
        "random init (dcgan)",
        "random init (dcgan, net 2)",
        "random init (dcgan, net 3)",
    ]


def test_random_weights_follow_the_seed_and_others_do_not(rows: list[Row], tmp_path: Path):
    task = Sums()
    found = figures(run(rows, [task], 3, tmp_path, CPU), rows)
    assert len(set(found["one"]["sums", "once"].values.values())) == 1
    assert len(set(found["random init (alexnet)"]["sums", "once"].values.values())) == 3
    assert found["one"]["sums", "once"].base == found["random init (alexnet)"]["sums", "once"].values
    assert task.built == 1 + 3 + 1  # what is computed of frozen weights is computed once


def test_finished_cells_are_not_run_again_and_others_are(rows: list[Row], tmp_path: Path):
    first = run(rows, [Sums()], 2, tmp_path, CPU)
    again = Sums()
    assert run(rows, [again], 2, tmp_path, CPU) == first
    assert again.asked == []
    more = Sums()
    run(rows, [more], 3, tmp_path, CPU)
    assert {seed for _, _, seed in more.asked} == {2}
    other_settings = Sums(steps=2)
    run(rows, [other_settings], 1, tmp_path, CPU)
    assert len(other_settings.asked) == 6
    changed = Sums()
    state = {name: value + 1 for name, value in (rows[0].state or {}).items()}
    run([Row("one", rows[0].spec, state)], [changed], 1, tmp_path, CPU)
    assert len(changed.asked) == 2


def test_a_cell_that_fails_leaves_its_place_empty_and_is_tried_again(
    rows: list[Row], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    heard: list[Place] = []
    results = run(rows, [Sums(failing="one")], 1, tmp_path, CPU, lambda place, cell: heard.append(place))
    assert results[Place("sums", "one", "again", 0)] == Cell(error="RuntimeError: no more room")
    assert "seed 0: failed: RuntimeError: no more room" in capsys.readouterr().out
    assert len(results) == len(heard) == 6
    assert sum(not cell.error for cell in results.values()) == 5
    mended = Sums()
    run(rows, [mended], 1, tmp_path, CPU)
    assert mended.asked == [("one", "again", 0)]


def test_what_is_stored_is_whole_or_refused(tmp_path: Path):
    (tmp_path / Store.FILE).write_text('{"half')
    with pytest.raises(ValueError, match="remove it, or name another folder with --out"):
        Store(tmp_path)


def test_gains_are_over_the_seeds_that_both_have(rows: list[Row]):
    def place(row: str, seed: int) -> Place:
        return Place("t", row, "p", seed)

    results = {
        place("one", 0): Cell({"p": 0.30}),
        place("one", 1): Cell({"p": 0.32}),
        place("one", 2): Cell({"p": 0.28}),
        place("random init (alexnet)", 1): Cell({"p": 0.33}),
        place("random init (alexnet)", 2): Cell({"p": 0.20}),
        place("random init (alexnet)", 0): Cell(error="failed"),
    }
    figure = figures(results, rows)["one"]["t", "p"]
    assert figure.mean == pytest.approx(30)
    assert figure.deviation == pytest.approx(2)
    assert figure.gains == pytest.approx([-1, 8])
    assert figure.won == "1/2"


def test_pixels_are_an_encoder():
    encoder = Pixels().build()
    image = torch.rand(2, 3, 40, 48)
    maps = encoder(image)
    assert maps[8].shape == (2, 192, 5, 6)
    assert maps[8][1, 0, 2, 3] == image[1, 0, 16, 24]
    whole = torch.nn.functional.interpolate(image, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(encoder.vector(maps), whole.flatten(1))
    assert encoder(torch.rand(1, 3, 33, 37))[8].shape == (1, 192, 5, 5)
    assert json.dumps(Pixels().plain()) == '{"kind": "pixels"}'


def test_data_are_named_by_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert named("scenes") == "scenes"
    monkeypatch.chdir(tmp_path)
    assert named(".") == tmp_path.name
    assert named(f"{tmp_path}/") == tmp_path.name
