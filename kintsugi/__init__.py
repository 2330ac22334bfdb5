"""Kintsugi: learning to see by mending images. These conventions hold everywhere in the library:

- Images are float tensors ``(N, 3, H, W)`` in [0, 1], sRGB. On disk and in caches they are uint8.
- Masks are float tensors ``(N, 1, H, W)``; 1 = hole, 0 = visible.
- Depth is in meters; 0 = missing. Camera axes: x right, y down, z forward.
- Semantic maps are uint8 ``(N, H, W)``; 255 = void.
- Randomness is a function of ``(seed, step)`` for the whole global batch (``kintsugi.rng``); a rank takes its slice.
- Layers, from top to bottom: ``apps``, ``eval``, the methods (``recon``, ``contrastive``, ``pretext``), ``train``,
  ``metrics``, ``losses``, ``fill``, ``nets``, ``augment``, ``data``, ``scenes``, the base modules (``rng``, ``color``,
  ``table``, ``pictures``), ``upload``. A module imports only from the layers below its own. The library imports no
  method. Neither does the transfer in ``eval``, which reads checkpoints. ``make check`` enforces the layers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kintsugi.train.checkpoint import load_encoder

__all__ = ["__version__", "load_encoder"]

__version__ = "0.2.0"

if not TYPE_CHECKING:  # a type checker that saw this function would accept every misspelled name

    def __getattr__(name: str):
        """``load_encoder`` is imported at its first use, so that ``import kintsugi`` stays quick."""
        if name == "load_encoder":
            from kintsugi.train.checkpoint import load_encoder

            return load_encoder
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
