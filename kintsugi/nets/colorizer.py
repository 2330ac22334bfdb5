"""The colorizer (Zhang 2016, arXiv:1603.08511), and coloring photos of any size with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate

from kintsugi import color
from kintsugi.augment.guided import guided_lines
from kintsugi.color import lab_to_rgb, rgb_to_lab
from kintsugi.data.photos import whole_strides
from kintsugi.nets.decoders import Pyramid
from kintsugi.nets.encoder_choice import chosen
from kintsugi.nets.layers import Norm
from kintsugi.nets.planes import Planes

ROWS = 2048  # rows of a photo that are computed at a time, to limit memory


@dataclass(frozen=True)
class ColorizerSpec:
    """Settings of the network and of how its bins become colors; ``build()`` makes it, with fresh weights."""

    encoder: str = "resnet18"
    """As of ``kintsugi.nets.encoder_choice.chosen``."""
    width: float = 1.0
    """Factor on the encoder's numbers of channels."""
    norm: Norm = "batch"
    loss: Literal["classification", "l2"] = "classification"
    hints: bool = False
    classes: int = 0
    rebalance: float = 0.5
    undo_rebalance: float = 0.0
    temperature: float = 0.38
    size: int = 64
    """Side of the crops on which it was trained, px."""
    patch: int = 0
    """Side of a vision transformer's patches, px; 0 = its own."""

    def build(self) -> Colorizer:
        return Colorizer(self)


class Colorizer(nn.Module):
    """Predicts chroma from the lightness of RGB images (N,3,S,S) in [0,1], at the encoder's finest stride (here 4).

    Returns a pair: logits of the bins (N,313,S/4,S/4), or with ``loss`` l2 the chroma ab (N,2,S/4,S/4); and class
    logits (N,classes) or None. Hints: ``known`` is ab (N,2,S,S), used where ``where`` (N,1,S,S) is 1.
    """

    bins: Tensor
    counts: Tensor

    def __init__(self, spec: ColorizerSpec) -> None:
        super().__init__()
        self.spec = spec
        network = chosen(spec.encoder, spec.norm, width=spec.width, size=spec.size, patch=spec.patch)
        self.encoder = Planes("L", network).build()
        self.register_buffer("bins", color.ab_bins(), persistent=False)
        # How often each bin occurred. It starts at 1, so that the prior is uniform before anything is counted.
        self.register_buffer("counts", torch.ones(len(self.bins)))
        width, channels = 128, self.encoder.channels
        self.decoder = Pyramid(channels, len(self.bins) if spec.loss == "classification" else 2, width, spec.norm)
        self.hints = nn.ModuleDict({str(s): nn.Conv2d(3, width, 3, padding=1) for s in channels if spec.hints})
        if spec.classes:
            coarsest = max(channels)
            self.globe = nn.Sequential(nn.Linear(channels[coarsest], 256), nn.ReLU(), nn.Linear(256, width))
            self.classifier = nn.Linear(width, spec.classes)

    def forward(self, image: Tensor, known: Tensor | None = None, where: Tensor | None = None):  # type: ignore[no-untyped-def]
        features = self.encoder(image)
        added: dict[int, Tensor] = {}
        if self.hints:  # without hints too, because the layers have biases
            blank = torch.zeros_like(image)  # (N,3,S,S)
            given = blank if known is None or where is None else torch.cat([known * where / 110, where], 1)
            for stride, layer in self.hints.items():
                side = features[int(stride)].shape[-2:]
                # The mean over a position's pixels, scaled up where few are known, so that even one pixel counts.
                mean = adaptive_avg_pool2d(given, side)
                added[int(stride)] = layer(mean / mean[:, 2:].clamp(min=1e-4).sqrt())
        classes = None
        if self.spec.classes:
            coarsest = max(features)
            vector = self.globe(features[coarsest].mean((2, 3)))  # (N,width)
            classes = self.classifier(vector.relu())
            added[coarsest] = added.get(coarsest, 0) + vector[:, :, None, None]  # Iizuka's fusion: at every position
        out = self.decoder(features, added).float()
        return (out if self.spec.loss == "classification" else 110 * out), classes

    def chroma(self, out: Tensor, temperature: float | None = None) -> Tensor:
        """ab (N,2,s,s) from the first output of ``forward``; default temperature: the settings'."""
        if self.spec.loss == "l2":
            return out
        # Trained with weights w, the network predicts probabilities proportional to p w.
        logits = out - self.spec.undo_rebalance * self.weights().log()[:, None, None]
        return color.annealed_mean(logits, self.bins, temperature or self.spec.temperature)

    def prior(self) -> Tensor:
        """The frequencies of the bins, (313,), summing to 1."""
        return self.counts / self.counts.sum()

    def weights(self) -> Tensor:
        """The bins' weights in the loss, (313,): from the smoothed prior (section 2.2, eq. 4)."""
        return color.rebalancing(color.smoothed(self.prior(), self.bins), self.spec.rebalance)


# --- photos of any size ---------------------------------------------------------------------------------------


@torch.no_grad()
def colorize(
    image: Tensor,
    net: Colorizer,
    side: int = 0,
    temperature: float | None = None,
    known: Tensor | None = None,
    report: Callable[[float], object] = lambda done: None,
) -> Tensor:
    """Colorizes an image (3,H,W) in [0,1] from its lightness, which stays the same -> (3,H,W) in [0,1].

    side: the short side of the image that the network sees, px; 0: a third more than that of its training crops, which
    show about three quarters of a photo's side. temperature: of the annealed mean; default: the network's. known:
    (1,H,W), 1 where the image's own colors are used as hints. report: called with the fraction that is done.

    The chroma is enlarged so that its edges follow those of the lightness (``guided_lines``).
    """
    height, width = image.shape[-2:]
    size = whole_strides((height, width), side or 4 * net.spec.size // 3)
    small = interpolate(image[None], size, mode="bilinear", antialias=True)  # (1,3,h,w)
    if known is None:
        out, _ = net(small)
    else:
        where = interpolate(known[None], size, mode="area")
        hinted = interpolate(rgb_to_lab((image * known)[None])[:, 1:] * known, size, mode="area")
        out, _ = net(small, hinted / where.clamp(min=1e-6), (where > 0).to(small))
    ab = net.chroma(out, temperature)  # (1,2,h/4,w/4)
    guide = interpolate(rgb_to_lab(small)[:, :1], ab.shape[-2:], mode="area") / 100
    lines = torch.cat(guided_lines(ab, guide), 1)  # (1,4,h/4,w/4)
    result = torch.empty_like(image)
    for top in range(0, height, ROWS):
        rows = slice(top, min(top + ROWS, height))
        lightness = rgb_to_lab(image[None, :, rows])[:, :1]
        # The rows of the enlarged lines: the same bilinear interpolation, some rows at a time.
        y = (torch.arange(rows.start, rows.stop, device=image.device) + 0.5) / height * 2 - 1
        x = (torch.arange(width, device=image.device) + 0.5) / width * 2 - 1
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)[None]  # (1,rows,W,2): x, y
        slope, offset = grid_sample(lines, grid, padding_mode="border", align_corners=False).chunk(2, 1)
        result[:, rows] = lab_to_rgb(torch.cat([lightness, slope * lightness / 100 + offset], 1))[0]
        report(rows.stop / height)
    return result


def with_hints(image: Tensor, colors: Tensor, known: Tensor) -> Tensor:
    """The image with the chroma of ``colors`` where they are known; it keeps its lightness. All (3,H,W) in [0,1].

    known: (1,H,W), 1 = known.
    """
    lab = torch.cat([rgb_to_lab(image[None])[:, :1], rgb_to_lab(colors[None])[:, 1:]], 1)
    return torch.where(known > 0, lab_to_rgb(lab)[0], image)
