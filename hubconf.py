"""Trained encoders in other people's code: ``torch.hub.load(REPO, "encoder", CHECKPOINT, source="local")``."""

from pathlib import Path

from kintsugi.nets.encoder import Encoder
from kintsugi.train.checkpoint import load_encoder

dependencies = ["torch", "torchvision", "kornia", "numpy", "safetensors", "scipy"]


def encoder(checkpoint: str, role: str = "") -> Encoder:
    """RGB (N,3,H,W) in [0,1] -> {stride: feature map (N,C,H/stride,W/stride)}, in eval mode, on the CPU.

    checkpoint: a file that a training wrote, or a run's folder, of which the newest is taken. role: ``generator``,
    ``discriminator`` or ``encoder``; without it the checkpoint's first, a GAN's generator. ValueError of one line where
    there is none.
    """
    return load_encoder(Path(checkpoint), role)
