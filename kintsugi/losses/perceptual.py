"""Perceptual distances: LPIPS and VGG's features, with weights from a file or torch.hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from kintsugi.nets.backbones import IMAGENET_MEAN, IMAGENET_STD


class Lpips(nn.Module):
    """LPIPS, version 0.1 with AlexNet (Zhang 2018, arXiv:1801.03924), as a map of distances.

    Two images (N,3,H,W) in [0,1] -> (N,1,H,W). The linear layers come from the lpips package. trunk: the weights of
    AlexNet trained on ImageNet, with torchvision's names.
    """

    def __init__(self, trunk: dict[str, Tensor]) -> None:
        import lpips  # imported here: slow, and --help does not need it

        super().__init__()
        self.distance = lpips.LPIPS(net="alex", spatial=True, pnet_rand=True, verbose=False).eval()
        self.requires_grad_(False)
        net = self.distance.net  # its sliceK.I.weight is torchvision's features.I.weight
        net.load_state_dict({name: trunk[f"features.{name.partition('.')[2]}"] for name in net.state_dict()})

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return self.distance(image, other, normalize=True)


def open_lpips(trunk: str) -> tuple[Lpips | None, str]:
    """LPIPS and one line that names its weights, or None and one line that gives the reason.

    trunk: the weights of torchvision's AlexNet: ``auto`` (those in torch.hub's cache, if they are there; nothing is
    downloaded), ``download``, or a file (.pth, .safetensors); ``off`` for no LPIPS. Raises ValueError if the file does
    not hold these weights, OSError if the download fails.
    """
    from torchvision.models import AlexNet_Weights

    if trunk == "off":
        return None, "LPIPS is off"
    file = _weights_file("--lpips", trunk, "AlexNet", AlexNet_Weights.IMAGENET1K_V1.url)
    if file is None:
        return None, "no LPIPS: its AlexNet is not on this machine; add --lpips download, or --lpips FILE"
    try:
        return Lpips(_load(file)), f"LPIPS with AlexNet from {file}"
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or foreign file
        raise ValueError(
            f"{file} does not hold torchvision's AlexNet ({type(error).__name__}): give its weights "
            "with --lpips FILE, or --lpips off"
        ) from None


ContentLayer = Literal["relu2_2", "relu3_4", "relu5_4", "conv1_2-conv3_4", "conv1_2-conv5_4"]
_CONTENT_LAYERS: dict[str, tuple[int, ...]] = {  # their numbers in torchvision's VGG19.features
    "relu2_2": (8,),
    "relu3_4": (17,),
    "relu5_4": (35,),
    "conv1_2-conv3_4": (2, 7, 16),
    "conv1_2-conv5_4": (2, 7, 16, 25, 34),
}


class ContentFeatures(nn.Module):
    """VGG19 up to one of its layers: RGB (N,3,H,W) in [0,1] -> feature map (N,C,h,w). ``maps`` gives several layers'.

    relu2_2 and relu5_4 are phi_2,2 and phi_5,4 of SRGAN's content loss (Ledig 2017, arXiv:1609.04802, eq. 5). A range
    is the last convolution of each block before its ReLU: before the ReLU as in ESRGAN (Wang 2018, arXiv:1809.00219,
    section 3.3), several of them as in Real-ESRGAN (Wang 2021, arXiv:2107.10833, section 4.1).

    Images are normalized by ImageNet's mean and standard deviation inside. Gradients pass through; the weights are
    frozen.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layer: ContentLayer, weights: dict[str, Tensor]) -> None:
        from torchvision.models import vgg19

        super().__init__()
        self.kept = _CONTENT_LAYERS[layer]
        self.before_relu = layer.startswith("conv")
        with torch.device("meta"):  # saves the time to initialize weights that are replaced or not used
            self.layers = vgg19().features[: self.kept[-1] + 1]
        for module in self.layers:
            if isinstance(module, nn.ReLU):
                module.inplace = False
        state = {name: weights[f"features.{name}"] for name in self.layers.state_dict()}
        self.layers.load_state_dict(state, assign=True)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def maps(self, image: Tensor) -> list[Tensor]:
        """The feature map of each layer, (N,C,h,w) each, for images (N,3,H,W) in [0,1]."""
        x, found = (image - self.mean) / self.std, []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in self.kept:
                found.append(x)
        return found

    def forward(self, image: Tensor) -> Tensor:
        return self.maps(image)[-1]

    def distance(self, image: Tensor, truth: Tensor) -> Tensor:
        """The distance of two images' feature maps, relative to the truth's map, 0-d; of several layers, the mean.

        After a ReLU it is the mean squared difference, divided by the mean square of the truth's map (SRGAN); before
        one, ``relative_l1`` (ESRGAN's is absolute too). Because of the division the scale is the same for weights from
        Caffe, whose maps are hundreds of times larger, and for all layers.
        """
        with torch.no_grad():
            targets = [each.float() for each in self.maps(truth)]
        pairs = list(zip(self.maps(image), targets, strict=True))
        if self.before_relu:
            return torch.stack([relative_l1(*pair) for pair in pairs]).mean()
        ((found, target),) = pairs
        return mse_loss(found.float(), target) / target.square().mean().clamp(min=1e-12)


def relative_l1(map: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute difference of maps (N,C,H,W), for each image in units of its true map's mean, 0-d."""
    map, truth = map.float(), truth.float()
    dims = (1, 2, 3)
    return ((map - truth).abs().mean(dims) / truth.abs().mean(dims).clamp(min=1e-6)).mean()


def open_content(layer: ContentLayer, weights: str) -> tuple[ContentFeatures | None, str]:
    """VGG19's features and one line that names their weights, or None and one line that gives the reason.

    weights: torchvision's VGG19, given in the same way as ``trunk`` in ``open_lpips``; the errors are the same too.
    """
    from torchvision.models import VGG19_Weights

    if weights == "off":
        return None, "VGG19 is off"
    file = _weights_file("--content-weights", weights, "VGG19", VGG19_Weights.IMAGENET1K_V1.url)
    if file is None:
        return None, "VGG19 is not on this machine; add --content-weights download, or FILE"
    try:
        return ContentFeatures(layer, _load(file)), f"VGG19's {layer} from {file}"
    except KeyError:
        raise ValueError(
            f"{file} does not reach VGG19's {layer}: choose a lower --content-layer, or give all of torchvision's VGG19"
        ) from None
    except Exception as error:  # torch and safetensors raise many kinds for a damaged or foreign file
        raise ValueError(
            f"{file} does not hold torchvision's VGG19 ({type(error).__name__}): give its weights "
            "with --content-weights FILE, or --content-weights off"
        ) from None


def _weights_file(option: str, value: str, network: str, url: str) -> Path | None:
    """The file of weights for ``auto``, ``download`` or a path; None if auto finds none in the cache."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    if value == "auto":
        return cached if cached.is_file() else None
    if value == "download":
        torch.hub.load_state_dict_from_url(url, weights_only=True, check_hash=True)
        return cached
    if not Path(value).is_file():
        raise ValueError(f"{option} {value}: no such file; give {network}'s weights, or auto, download or off")
    return Path(value)


def _load(file: Path) -> dict[str, Tensor]:
    if file.suffix == ".safetensors":
        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)
