"""The inputs of the training steps, which a GPU computes while it trains on those of the step before."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch

from kintsugi.train.method import Batch


def inputs_ahead(
    compute: Callable[[Batch, int], Batch], batches: Iterable[Batch], steps: range, device: torch.device
) -> Iterator[tuple[int, Batch]]:
    """Each step with its inputs.

    compute: ``Method.inputs``. batches: one for each step. On a GPU, the inputs of a step are computed on a stream of
    their own and before the step before is, so that both run at the same time. The inputs are the same: they depend on
    nothing that a step changes. One batch of inputs more is then in memory.
    """
    if device.type != "cuda":
        for step, batch in zip(steps, batches, strict=False):
            yield step, compute(batch, step)
        return
    main, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    source = iter(batches)

    def issue(step: int) -> tuple[int, Batch]:
        side.wait_stream(main)  # for what all steps before wrote, and until they have read what is written now
        with torch.cuda.stream(side):
            return step, compute(next(source), step)

    issued = map(issue, steps)
    coming = next(issued, None)
    while coming is not None:
        step, inputs = coming
        main.wait_stream(side)
        for value in inputs.values():
            value.record_stream(main)  # side must not reuse this memory before main has read it
        coming = next(issued, None)
        yield step, inputs
