"""Distillation: a student learns a frozen teacher's features on unlabeled images.

The student's encoder sees a crop; linear maps of its features predict the teacher's features of the same crop: its
feature map, position by position, and its pooled vector. Only the student's encoder is kept. So a small network gets
what a large published one knows, on a person's own images, as in Romero 2015 (FitNets, arXiv:1412.6550, section 2.2)
without labels. Both networks see the same crop, as Beyer 2022 (arXiv:2106.05237) recommend.

Deviations, each with its reason:
- The teacher's features are standardized, channel by channel, over a sample of the training images: otherwise a few
  strong channels, and the mean that all images share, would dominate the loss.
- FitNets regress one hidden map from another. Here the student predicts the pooled vector too, because it is the vector
  that kNN and linear classifiers use.
- FitNets then train with labels and the teacher's logits. Here there are no labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cosine_similarity, interpolate, mse_loss, normalize

from kintsugi.augment import color_jitter, cropping
from kintsugi.augment.color_jitter import ColorAugmentation
from kintsugi.contrastive.teachers import SOURCES, FeatureCache, Standardize, Teacher, TeacherFeatures, load_teacher
from kintsugi.contrastive.views import ViewsConfig, ViewsMethod
from kintsugi.data.loader import Indexed
from kintsugi.pictures import FeatureColors, sheet
from kintsugi.rng import generator
from kintsugi.train import optim
from kintsugi.train.command import run_method
from kintsugi.train.config import within
from kintsugi.train.dist import World
from kintsugi.train.method import Batch

_FLIPS, _COLORS = 3, 4  # last number of a random generator's key: what it draws
SAMPLE = 256  # training images whose features give the mean and the deviation of each channel


# --- settings -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DistillConfig(ViewsConfig):
    teacher: str = ""
    """The teacher: timm:NAME or torchvision:NAME (downloaded), ARCHITECTURE=FILE with published weights, as in
    alexnet=FILE, or a run's folder or checkpoint."""
    teacher_size: int = 0
    """Side of the teacher's crops, px; 0 = --size. Larger crops than the student's often give far better features."""
    teacher_stride: int = 0
    """Stride of the teacher's map to learn; 0 = its coarsest."""

    student_stride: int = 0
    """Stride of the student's map that predicts the teacher's; 0 = its coarsest."""

    loss: Literal["cosine", "l2"] = "cosine"
    """cosine: one minus the cosine of predicted and true features; l2: their mean squared difference."""
    map_weight: float = 1.0
    """Weight of the loss of the feature map."""
    vector_weight: float = 1.0
    """Weight of the loss of the pooled vector."""
    grid: Literal["teacher", "student"] = "teacher"
    """teacher: the student's predictions are resized to the teacher's map; student: the teacher's map is averaged to
    the student's."""

    views: Literal["random", "fixed"] = "random"
    """random: crops that differ at each step; fixed: central squares, half of them mirrored, for which the teacher runs
    once per image."""
    features_gb: float = 2.0
    """With --views fixed: keep the teacher's features in memory if they take at most this many GB; 0 = never."""
    strength: float = 0.0
    """Strength of color jitter for the student alone, as a factor on SimCLR's; 0 = none, and no gray views."""
    blur: float = 0.0
    """Probability that the student's view is blurred."""

    optimizer: optim.Rule = "adam"
    lr: float = 1e-3
    weight_decay: float = 1e-4
    warmup: int = 30
    """Steps over which the learning rate rises linearly; then it falls along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = "teacher_size teacher_stride student_stride map_weight vector_weight features_gb warmup".split()
        within(self, **dict.fromkeys(counts, 0))
        if self.map_weight == self.vector_weight == 0:
            raise ValueError("--map-weight and --vector-weight are both 0: nothing would be learned")


def demo() -> DistillConfig:
    """Minutes on two CPU cores, on the built-in scenes; needs --teacher."""
    return DistillConfig(
        preset="demo",
        scenes=2048,
        short_side=80,
        steps=400,
        batch=64,
        teacher_size=128,
        smallest_crop=0.2,
        show_every=100,
        eval_every=100,
        save_every=100,
    )


def small() -> DistillConfig:
    """One GPU, tens of minutes; needs --teacher."""
    return DistillConfig(
        preset="small",
        size=128,
        teacher_size=224,
        batch=128,
        steps=20_000,
        warmup=500,
        smallest_crop=0.2,
        show_every=1_000,
        eval_every=1_000,
        save_every=2_000,
        scenes=50_000,
    )


def paper() -> DistillConfig:
    """100 epochs of ImageNet at 224 px with a large batch; needs --teacher, such as a ViT of timm."""
    return DistillConfig(
        preset="paper",
        data="imagenet:imagenet",
        encoder="resnet50",
        size=224,
        short_side=256,
        batch=1024,
        steps=125_000,
        warmup=6_250,
        smallest_crop=0.2,
        cache_gb=400,
        show_every=1_000,
        eval_every=2_000,
        save_every=1_000,
    )


# --- losses ---------------------------------------------------------------------------------------------------


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """One minus the cosine of predicted and true features (N,C,...) along C, averaged over all else, 0-d in [0,2]."""
    return 1 - cosine_similarity(predicted, target, dim=1).mean()


def l2_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """The mean squared difference of predicted and true features (N,C,...), 0-d."""
    return mse_loss(predicted, target)


def regridded(map: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (N,C,h,w) on a grid of another size, (N,C,*size): enlarged bilinearly, or averaged over each cell."""
    if map.shape[-2] < size[0] or map.shape[-1] < size[1]:
        return interpolate(map, size, mode="bilinear")
    return adaptive_avg_pool2d(map, size)


# --- the method -----------------------------------------------------------------------------------------------


class Distill(ViewsMethod[DistillConfig]):
    """A student, two linear maps that predict the teacher's features, and the teacher, which is not trained."""

    name = "distill"
    score = "cosine"

    def __init__(self, config: DistillConfig, world: World) -> None:
        super().__init__(config, world)
        # No module: the teacher's weights are in no checkpoint.
        side = config.teacher_size or config.size
        self.teacher = Teacher(*load_teacher(config.teacher), config.teacher_stride, side, world)
        strides = sorted(self.encoder.channels)
        self.stride = config.student_stride or strides[-1]
        if self.stride not in strides:
            raise ValueError(f"--student-stride {self.stride}: the student has {', '.join(map(str, strides))}")
        self.map_head = nn.Conv2d(self.encoder.channels[self.stride], self.teacher.channels, 1)
        self.vector_head = nn.Linear(self.width, self.teacher.width)
        self.map_standard = Standardize(self.teacher.channels)
        self.vector_standard = Standardize(self.teacher.width)
        self.cache: FeatureCache | None = None
        self.add_optimizer("student", nn.ModuleList([self.encoder, self.map_head, self.vector_head]))

    @classmethod
    def check(cls, config: DistillConfig) -> None:
        if not config.teacher:
            raise ValueError(f"--teacher (TEACHER= for make) is missing: name {SOURCES}")
        load_teacher(config.teacher)  # so that a wrong teacher is refused before images are decoded

    def on_train_data(self, data: Indexed) -> None:
        """Sets the mean and deviation of the teacher's features, from evenly spaced images, and makes the cache."""
        rows = torch.linspace(0, len(data) - 1, min(SAMPLE, len(data))).long()
        batches = (
            {name: value.to(self.world.device) for name, value in data.batch(some).items()} for some in rows.split(64)
        )
        found = [self.teacher(cropping.center_crops(batch, self.teacher.side)) for batch in batches]
        self.map_standard.fit([features.map for features in found])
        self.vector_standard.fit([features.vector for features in found])
        if self.config.views == "fixed" and self.config.features_gb:
            self.cache = FeatureCache(len(data), self.config.features_gb * 1e9)

    def update(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        image, target = self.crops(batch, step)
        self.encoder.train()
        with self.world.autocast():
            predicted = self.predict(image)
        measure = cosine_loss if config.loss == "cosine" else l2_loss
        of_map = measure(*self.on_one_grid(predicted.map.float(), target.map))
        of_vector = measure(predicted.vector.float(), target.vector)
        loss = config.map_weight * of_map + config.vector_weight * of_vector
        optimizer = self.optimizers["student"]
        self.world.backward(loss, optimizer)
        optim.set_lr(optimizer, self.rate * optim.warmup_cosine(step, config.steps, config.warmup))
        scalars = {"loss/total": loss, "loss/map": of_map, "loss/vector": of_vector}
        scalars = {name: value.detach() for name, value in scalars.items()}
        return scalars | self.take_step("student", step)

    def predict(self, image: Tensor) -> TeacherFeatures:
        """The student's predictions of the teacher's standardized features, for images (n,3,S,S) in [0,1]."""
        maps = self.encoder(image)
        return TeacherFeatures(self.map_head(maps[self.stride]), self.vector_head(self.encoder.vector(maps)))

    def targets(self, image: Tensor) -> TeacherFeatures:
        """The teacher's standardized features of images (n,3,S,S) in [0,1]."""
        map, vector = self.teacher(image)
        return TeacherFeatures(self.map_standard(map), self.vector_standard(vector))

    def on_one_grid(self, predicted: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted and true maps (n,C,h,w), on the teacher's grid or on the student's (``--grid``)."""
        if self.config.grid == "teacher":
            return regridded(predicted, (target.shape[2], target.shape[3])), target
        return predicted, regridded(target, (predicted.shape[2], predicted.shape[3]))

    # --- crops and targets ------------------------------------------------------------------------------------

    def recipes(self) -> tuple[ColorAugmentation, ColorAugmentation]:
        """Of the held-out pairs of views, for same_image: SimCLR's."""
        return ColorAugmentation(), ColorAugmentation()

    def crops(self, batch: Batch, step: int) -> tuple[Tensor, TeacherFeatures]:
        """This rank's crops (n,3,S,S) in [0,1] for the student, and the teacher's features of the same crops."""
        config, count = self.config, len(batch["image"]) * self.world.size
        mine, key = self.world.part(count), (config.seed, step)
        colors = None
        if config.strength or config.blur:
            colors = ColorAugmentation(blur=config.blur).with_strength(config.strength)
        if config.views == "fixed":
            flip = cropping.random_flips(count, generator(*key, _FLIPS))[mine]
            image = self._squares(batch, config.size, flip)
            if colors is not None:
                changes = color_jitter.draw_changes(colors, count, generator(*key, _COLORS))[mine]
                image = color_jitter.recolor(image, changes)
            return image, self._fixed_targets(batch, flip)
        # The same key gives the same boxes and flips.
        image, seen = (
            color_jitter.random_views(batch, recipe, size, config.smallest_crop, count, mine, key)
            for recipe, size in ((colors, config.size), (None, self.teacher.side))
        )
        return image, self.targets(seen)

    def _squares(self, batch: Batch, size: int, flip: Tensor) -> Tensor:
        """The central squares, mirrored where ``flip`` is true: (n,3,size,size) in [0,1]."""
        return cropping.crop_resize(batch["image"], cropping.center_boxes(batch["extent"]), size, flip)

    def _fixed_targets(self, batch: Batch, flip: Tensor) -> TeacherFeatures:
        """The teacher's features of the central squares, from the cache if they are there."""

        def compute(flip: Tensor) -> TeacherFeatures:
            return self.targets(self._squares(batch, self.teacher.side, flip))

        return self.cache.features(batch["index"].cpu(), flip, compute) if self.cache else compute(flip)

    # --- state ------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        """Which teacher it is. Its weights are not kept."""
        return {"teacher": self.teacher.name, "digest": self.teacher.digest}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["digest"] != self.teacher.digest:
            raise ValueError(
                f"its teacher is {state['teacher']} with weights {state['digest']}, --teacher is {self.teacher.name} "
                f"with weights {self.teacher.digest}"
            )

    # --- pictures and figures ---------------------------------------------------------------------------------

    @torch.no_grad()
    def predicted(self, batch: Batch) -> tuple[Tensor, TeacherFeatures, TeacherFeatures]:
        """The central squares of held-out images, and their predicted and true features, on the teacher's grid."""
        image = cropping.center_crops(batch, self.config.size)
        target = self.targets(cropping.center_crops(batch, self.teacher.side))
        self.encoder.eval()
        with self.world.autocast():
            map, vector = self.predict(image)
        map = regridded(map.float(), (target.map.shape[2], target.map.shape[3]))
        return image, TeacherFeatures(map, vector.float()), target

    def show(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's map and the student's prediction of it, in the colors of the teacher's main directions.

        Features have the length 1 there, because the cosine loss leaves the length of predictions open.
        """
        image, predicted, target = self.predicted(batch)
        maps = [normalize(features.map, dim=1) for features in (target, predicted)]
        colors = FeatureColors(maps[0])
        shown = [interpolate(colors(map).to(image.device), image.shape[2:], mode="bilinear") for map in maps]
        return {"image | teacher's features | student's prediction": sheet([image, *shown], zoom=2)}

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Figures of held-out central squares.

        cosine, cosine_vector: mean cosine of predicted and true standardized features, of the map's positions and of
        the pooled vector, in [-1,1]. The others: ``ViewsMethod``.
        """
        kept = list(batches)
        similar: dict[str, list[Tensor]] = {"cosine": [], "cosine_vector": []}
        for batch in kept:
            _, *features = self.predicted(batch)
            for values, one, other in zip(similar.values(), *features, strict=True):
                values.append(cosine_similarity(one, other, dim=1).flatten())
        figures = {name: torch.cat(values).mean().item() for name, values in similar.items()}
        return figures | self._figures(kept, self.features)

    def baselines(self, batches: Iterable[Batch]) -> dict[str, dict[str, float]]:
        """Pixels, random weights, the mean of the teacher's features as a prediction, and the teacher itself."""
        kept = list(batches)
        teacher = self._figures(kept, lambda image: self.teacher(image).vector)
        return {
            "mean of the teacher's features": {"cosine": 0.0, "cosine_vector": 0.0},  # it is 0 when standardized
            **super().baselines(kept),
            f"teacher, {self.teacher.name}": {"cosine": 1.0, "cosine_vector": 1.0, **teacher},
        }


def main(argv: Sequence[str] | None = None) -> None:
    run_method(Distill, (demo, small, paper), argv)


if __name__ == "__main__":
    main()
