"""Trained encoders in other people's code: ``torch.hub.load(REPO, "encoder", CHECKPOINT, source="local")``.

It imports only the library's own rooms, not ``kintsugi/recon`` and the other links: in the zip that torch.hub takes
from a repository, a link is a plain file.
"""

from kintsugi.nets.encoder import Encoder
from kintsugi.train.checkpoint import load_encoder

dependencies = ["torch", "torchvision", "kornia", "numpy", "safetensors", "scipy", "timm"]


def encoder(checkpoint: str, role: str = "") -> Encoder:
    """RGB (N,3,H,W) in [0,1] -> {stride: feature map (N,C,H/stride,W/stride)}, in eval mode, on the CPU.

    checkpoint: a file that a training wrote, or a run's folder: then its newest checkpoint. role: ``generator``,
    ``discriminator`` or ``encoder``; default: the first, a GAN's generator. ValueError of one line
    if there is none.
    """
    return load_encoder(checkpoint, role)
