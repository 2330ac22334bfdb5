"""Random numbers that depend only on a key, never on how many were drawn before.

Everything random in a run is drawn from ``generator(seed, step, ...)``, on the CPU and for the whole global batch; each
rank takes its slice. So a resumed run, a run on another device and a run on more ranks draw the same numbers.
"""

from __future__ import annotations

import numpy as np
import torch


def generator(*key: int) -> torch.Generator:
    """A CPU generator whose numbers depend only on ``key``, a sequence of integers in [0, 2**64).

    >>> torch.rand(2, generator=generator(0, 7)).equal(torch.rand(2, generator=generator(0, 7)))
    True
    """
    return torch.Generator().manual_seed(derive_seed(*key))


def derive_seed(*key: int) -> int:
    """One 63-bit seed from several integers in [0, 2**64)."""
    # To SeedSequence, (1,) equals (1, 0), and (2**32,) equals (0, 1). So it gets the number of integers, then two
    # 32-bit words for each.
    words = [len(key), *(word for k in key for word in (k & 0xFFFFFFFF, k >> 32))]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
