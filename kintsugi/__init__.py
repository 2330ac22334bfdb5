"""What every method shares. Each convention of the project is stated once, here.

- Images are float tensors ``(N, 3, H, W)`` in [0, 1], sRGB; on disk and in caches they are uint8.
- Masks are float tensors ``(N, 1, H, W)``; 1 = hole, 0 = seen.
- Depth is in meters, 0 = missing. Camera axes: x right, y down, z forward.
- Semantic maps are uint8 ``(N, H, W)``; 255 = void.
- Randomness is a function of ``(seed, step)`` for the whole global batch (``kintsugi.rng``); a rank takes its slice.
- ``core`` imports no method; methods import only ``core``; ``eval`` imports ``core`` and reads checkpoints.
"""
