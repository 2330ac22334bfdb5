"""Random numbers that depend on what they are for, never on how many were drawn before.

Everything random in a run is drawn from ``generator(seed, step, ...)``, on the CPU and for the whole global batch; a
rank takes its slice. So a resumed run, a run on another device and a run on another number of ranks all draw the same.
"""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A CPU generator whose stream is a function of ``key`` (non-negative integers), well mixed by numpy.

    >>> torch.rand(2, generator=generator(0, 7)).equal(torch.rand(2, generator=generator(0, 7)))
    True
    """
    return torch.Generator().manual_seed(derive_seed(*key))


def derive_seed(*key: int) -> int:
    """One 63-bit seed from several integers below 2**64."""
    # Their number and two words for each, because SeedSequence takes (1,) for (1, 0) and 2**32 for (0, 1).
    words = [len(key), *(word for k in key for word in (k & 0xFFFFFFFF, k >> 32))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
