"""What MAE and SparK share: pictures and figures of painted images, of which only a part was visible."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar

from torch import Tensor

from kintsugi.augment import cropping
from kintsugi.fill.classical import Fill
from kintsugi.fill.membrane import mend
from kintsugi.metrics.reconstruction import HoleQuality
from kintsugi.nets.encoder import Encoder
from kintsugi.pictures import sheet
from kintsugi.train import inference
from kintsugi.train.method import Batch, C, Method

Paint = Callable[[Tensor, Tensor], Tensor]
"""Images (N,3,S,S) in [0,1] and what ``MaskedMethod.draw`` drew for them -> painted images (N,3,S,S) in [0,1]."""


class MaskedMethod(Method[C]):
    """Base class of the methods that paint masked squares of an image from the visible ones."""

    score = "psnr"
    encoder: Encoder
    title: ClassVar[str]
    """Title of the pictures, which have three columns: visible, painted where masked, truth."""

    @abstractmethod
    def draw(self, count: int, *key: int) -> Tensor:
        """Draws for ``count`` images what decides their masks, (count,...), on the CPU; a function of ``key``."""

    @abstractmethod
    def mask(self, drawn: Tensor) -> Tensor:
        """The masks of images, float (N,1,S,S), 1 = masked."""

    @abstractmethod
    def paint(self, image: Tensor, drawn: Tensor) -> Tensor:
        """As ``Paint``, by the networks."""

    def encoders(self) -> dict[str, Encoder]:
        return {"encoder": self.encoder}

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """Columns: visible squares on gray | painted, where masked | truth. The same masks at every call."""
        truth, drawn = self._centered(batch, 0)
        mask = self.mask(drawn)
        columns = [truth * (1 - mask) + 0.5 * mask, mend(self.paint(truth, drawn), truth, mask), truth]
        return {self.title: sheet(columns, zoom=2)}

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        image = cropping.center_crops(batch, self.config.size)
        return inference.features(self.encoder, image, self.world), image

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean figures (``HoleQuality``) of held-out images, where they are masked."""
        return self.figures(batches, self.paint)

    def figures(self, batches: Iterable[Batch], paint: Paint) -> dict[str, float]:
        """As ``evaluate``, of images that ``paint`` paints. Every call uses the same masks."""
        quality = HoleQuality()
        for number, batch in enumerate(batches):
            truth, drawn = self._centered(batch, 0, number)
            mask = self.mask(drawn)
            quality.add(mend(paint(truth, drawn), truth, mask), truth, mask)
        return quality.means()

    def with_fill(self, fill: Fill) -> Paint:
        """Paints by a fill without learning."""
        return lambda image, drawn: fill(image, self.mask(drawn))

    def _centered(self, batch: Batch, *key: int) -> tuple[Tensor, Tensor]:
        """The central squares of held-out images, (n,3,S,S) in [0,1], and what is drawn for them."""
        truth = cropping.center_crops(batch, self.config.size)
        return truth, self.draw(len(truth), *key).to(truth.device)
