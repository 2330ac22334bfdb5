"""The inputs of a step are computed on a stream of their own, while the step before trains."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from helpers import tiny_method
from helpers.pretended_gpu import OnGPU, pretended_gpu
from helpers.pretended_streams import PretendedStream, streams
from helpers.tiny_method import TinyMethod
from torch import Tensor

from kintsugi.train import checkpoint
from kintsugi.train.method import Batch


def run(device: str, out: Path) -> dict[str, Tensor]:
    """Trains the tiny method on a device. Returns its weights."""
    tiny_method.main(["--device", device, "--precision", "fp32", "--out", str(out)])
    return checkpoint.load(out / "step-00000006.pt")["state"]["weights"]


def test_inputs_that_are_computed_ahead_give_the_weights_of_inputs_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    order: list[tuple[str, int, bool]] = []
    for name in ("inputs", "update"):
        plain = getattr(TinyMethod, name)

        def watched(self: TinyMethod, batch: Batch, step: int, name: str = name, plain: object = plain) -> object:
            order.append((name, step, streams.current is streams.default))
            return plain(self, batch, step)  # type: ignore[operator]

        monkeypatch.setattr(TinyMethod, name, watched)
    in_turn = run("cpu", tmp_path / "cpu")
    assert order == [(name, step, True) for step in range(6) for name in ("inputs", "update")]
    order.clear()
    with pretended_gpu():
        ahead = run("cuda", tmp_path / "gpu")
    pairs = [(("inputs", step + 1, False), ("update", step, True)) for step in range(5)]
    assert order == [("inputs", 0, False), *itertools.chain(*pairs), ("update", 5, True)]
    assert all(torch.equal(ahead[name], in_turn[name]) for name in in_turn)


def not_waiting(for_default: bool) -> object:
    """``wait_stream`` that does not wait for the default stream, or only for it."""
    plain = PretendedStream.wait_stream

    def wait_stream(self: PretendedStream, other: PretendedStream) -> None:
        if (other is streams.default) != for_default:
            plain(self, other)

    return wait_stream


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ((PretendedStream, "wait_stream", not_waiting(True)), "index_select.*may not have written yet"),
        ((PretendedStream, "wait_stream", not_waiting(False)), "may not have written yet"),
        ((OnGPU, "record_stream", lambda self, stream: None), "the stream is not recorded"),
    ],
    ids=["inputs do not wait", "the step does not wait", "the memory is not recorded"],
)
def test_a_missing_synchronization_is_found(
    missing: tuple[type, str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(*missing)
    with pretended_gpu(), pytest.raises(RuntimeError, match=message):
        run("cuda", tmp_path)


def test_what_another_stream_reads_is_not_written_too_early():
    with pretended_gpu():
        side, x = torch.cuda.Stream(), torch.ones(3, device="cuda")
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            read = x[1:] + 1
        with pytest.raises(RuntimeError, match=r"add_.*may not have read yet"):
            x.add_(1)
        torch.cuda.current_stream().wait_stream(side)
        x.add_(1)
        read.record_stream(torch.cuda.current_stream())
        assert read.tolist() == [2, 2]
