"""Perceptual distances: LPIPS, with weights that are at hand."""

from __future__ import annotations

from pathlib import Path

import lpips
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import AlexNet_Weights


class Lpips(nn.Module):
    """LPIPS, AlexNet, version 0.1 (Zhang 2018, arXiv:1801.03924), as a map: two images (N,3,H,W) in [0,1] -> (N,1,H,W).

    The linear layers come with the lpips package, the trunk is ImageNet's AlexNet in torchvision's names.
    """

    def __init__(self, trunk: dict[str, Tensor]) -> None:
        super().__init__()
        self.distance = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False).eval()
        self.requires_grad_(False)
        net = self.distance.net  # its sliceK.I.weight is torchvision's features.I.weight
        net.load_state_dict({name: trunk[f"features.{name.partition('.')[2]}"] for name in net.state_dict()})

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.distance(image, other, normalize=True)


def open_lpips(trunk: str) -> tuple[Lpips | None, str]:
    """LPIPS, or None with the reason why not, in one line.

    trunk: ``off``; ``auto``, the weights torch.hub has in its cache, nothing is downloaded; ``download``; or a file
    (.pth, .safetensors) of torchvision's AlexNet. Raises ValueError for a file that is none, OSError where a
    download fails.
    """
    if trunk == "off":
        return None, "LPIPS is off"
    url = AlexNet_Weights.IMAGENET1K_V1.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if trunk == "auto" and not cached.is_file():
        return None, "no LPIPS: its AlexNet is not on this machine; add --lpips download, or --lpips FILE"
    if trunk == "download":
        torch.hub.load_state_dict_from_url(url, weights_only=True, check_hash=True)
    file = cached if trunk in ("auto", "download") else Path(trunk)
    if not file.is_file():
        raise ValueError(f"--lpips {trunk}: no such file; give AlexNet's weights, or auto, download or off")
    try:
        suffix = file.suffix == ".safetensors"
        state = load_file(file) if suffix else torch.load(file, map_location="cpu", weights_only=True)
        return Lpips(state), f"LPIPS with AlexNet from {file}"
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or foreign file
        raise ValueError(f"{file} does not hold torchvision's AlexNet ({type(error).__name__}): give its weights "
                         "with --lpips FILE, or --lpips off") from None  # fmt: skip
