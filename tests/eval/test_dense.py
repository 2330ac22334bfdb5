from __future__ import annotations

import math
import statistics
from dataclasses import replace

import pytest
import torch
from helpers.informed_features import Pooled
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from kintsugi.eval import dense
from kintsugi.eval.dense import DenseSettings, DenseTask, Labeled
from kintsugi.eval.fcn import FCN, enlarged
from kintsugi.eval.results import Result
from kintsugi.eval.tasks import FrozenFeatures
from kintsugi.eval.weights import Weights
from kintsugi.nets.backbones import Backbone
from kintsugi.train.compute import Compute

CPU = Compute(torch.device("cpu"))
ALEXNET = Weights("alexnet", Backbone("alexnet").plain())
TINY = DenseSettings(steps_frozen=3, steps_finetune=2, batch_dense=2, crop=48)


def blocks(count: int, seed: int) -> Tensor:
    """Blocks of one color, of 8 px, uint8 (N,3,64,64)."""
    random = torch.Generator().manual_seed(seed)
    small = torch.randint(256, (count, 3, 8, 8), generator=random, dtype=torch.uint8)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)


class Red(DenseTask):
    """Predicts how red each pixel is."""

    def __init__(self, count: int = 4, settings: DenseSettings = TINY) -> None:
        train, val = (self.labeled(blocks(count, seed)) for seed in (0, 1))
        super().__init__("red", train, val, 1, settings, CPU)

    @staticmethod
    def labeled(images: Tensor) -> Labeled:
        return Labeled(images, images[:, :1].float() / 255)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    def predict(self, output: Tensor) -> Tensor:
        return output

    def score(self, prediction: Tensor, protocol: str) -> Result:
        return Result({protocol: 1 - (prediction - self.val.targets).abs().mean().item()})

    def paint(self, targets: Tensor) -> list[Tensor]:
        return [targets.clamp(0, 1).expand(-1, 3, -1, -1)]


@pytest.mark.parametrize("size", [(12, 14), (48, 50), (7, 7)])
def test_enlarging_is_bilinear_interpolation(size: tuple[int, int]):
    image = torch.rand(2, 3, 6, 7)
    expected = nn.functional.interpolate(image, size, mode="bilinear")
    assert torch.allclose(enlarged(image, size), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "strides"),
    [(Backbone("resnet18"), [8, 16, 32]), (Backbone("dcgan"), [8, 16, 32]), (Backbone("resnet18", stem="small"), [8])],
)
def test_the_output_has_the_images_size(spec: Backbone, strides: list[int]):
    net = FCN(spec.build(), 5)
    assert net.strides == strides
    assert net(torch.rand(2, 3, 70, 90)).shape == (2, 5, 70, 90)


def test_features_are_those_of_the_images_and_of_their_mirror_images(monkeypatch: pytest.MonkeyPatch):
    task = Red(20)
    frozen = task.frozen_maps(Pooled())
    (maps,) = frozen.maps
    expected = avg_pool2d(torch.cat([task.train.images, task.train.images.flip(-1)]).float() / 255, 8)
    assert torch.allclose(maps, expected)
    assert torch.equal(frozen.rows, torch.arange(20))
    monkeypatch.setattr(dense, "FEATURE_BYTES", maps[:11].nbytes)
    fewer = task.frozen_maps(Pooled())
    assert fewer.rows.tolist() == [0, 4, 8, 12, 16]  # five and their mirror images are ten
    assert torch.allclose(fewer.maps[0], torch.cat([expected[0:20:4], expected[20:40:4]]))


def test_each_mirror_image_has_its_own_target_in_the_head_training():
    """If they were mixed up, the head could not learn from pooled colors how red they are."""
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=200, batch_dense=4, lr_frozen=0.05)
    task = Red(settings=settings)
    net = task._with_head(task.frozen_maps(Pooled()), 0).eval()
    with torch.no_grad():
        predicted = net(task.val.images.float() / 255)
    centers = (slice(None), slice(None), slice(4, None, 8), slice(4, None, 8))
    assert (predicted - task.val.targets)[centers].abs().mean() < 0.06


def test_crops_are_cut_out_of_image_and_target_alike():
    task = Red(settings=DenseSettings(crop=40, batch_dense=16))
    image, target = task.random_crops(4, 0, 0)
    assert image.shape == (16, 3, 40, 40)
    assert torch.allclose(image[:, :1], target)
    again, other = task.random_crops(4, 0, 0)[0], task.random_crops(4, 0, 1)[0]
    assert torch.equal(image, again)
    assert not torch.equal(image, other)
    task.crop = 1000
    whole = task.random_crops(3, 0, 0)[0]
    pictures = task.train.images[:3].float() / 255
    known = {picture.numpy().tobytes() for picture in torch.cat([pictures, pictures.flip(-1)])}
    assert all(picture.contiguous().numpy().tobytes() in known for picture in whole)


def test_frozen_maps_are_computed_once_and_fine_tuning_does_not_change_them(monkeypatch: pytest.MonkeyPatch):
    task, features = Red(), FrozenFeatures(ALEXNET, 0, CPU)
    calls: list[str] = []
    for name in ("frozen_maps", "_with_head"):
        method = getattr(Red, name)
        monkeypatch.setattr(
            Red, name, lambda self, *args, name=name, method=method: calls.append(name) or method(self, *args)
        )
    first = task.measure(features, "frozen", 0)
    frozen = features.once(task.frozen_maps)
    before = [value.clone() for value in frozen.heads[0].state_dict().values()]
    tuned = task.measure(features, "finetune", 0)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.heads[0].state_dict().values(), strict=True))
    again = task.measure(features, "frozen", 0)
    assert again.figures == first.figures
    assert task.measure(features, "frozen", 1).figures != first.figures  # another head, in another order
    assert calls == ["frozen_maps", "_with_head", "_with_head"]
    # It is the same alone, with other features.
    assert task.measure(FrozenFeatures(ALEXNET, 0, CPU), "finetune", 0).figures == tuned.figures


def test_frozen_keeps_the_weights_and_finetune_changes_all_layers():
    task = Red()
    frozen = task.frozen_maps(ALEXNET.encoder(0))
    original = dict(ALEXNET.encoder(0).named_parameters())
    assert all(torch.equal(original[name], p) for name, p in frozen.encoder.named_parameters())
    net = task._with_head(frozen, 0)
    task._train_all(net, 4, 0, 1e-3, 1.0)
    assert not any(torch.equal(original[name], p) for name, p in net.encoder.named_parameters())


@pytest.mark.parametrize("rates", [(1e-9, 3e-4), (3e-4, 1e-9), (math.inf, 3e-4)])
def test_fine_tuning_chooses_its_rate_on_held_out_training_images(
    rates: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
):
    """With a rate of 1e-9 nothing is learned, with an infinite one everything is NaN."""
    counts: list[int] = []
    crops = Red.random_crops
    monkeypatch.setattr(Red, "random_crops", lambda self, *args: counts.append(args[0]) or crops(self, *args))
    task = Red(10, replace(TINY, steps_frozen=60, steps_finetune=30, lr_finetune=rates))
    assert task.measure(FrozenFeatures(ALEXNET, 0, CPU), "finetune", 0).details == {"learning rate": 3e-4}
    assert set(counts) == {9}


def test_one_rate_trains_on_all_images(monkeypatch: pytest.MonkeyPatch):
    counts: list[int] = []
    crops = Red.random_crops
    monkeypatch.setattr(Red, "random_crops", lambda self, *args: counts.append(args[0]) or crops(self, *args))
    task = Red(10, replace(TINY, lr_finetune=(1e-3,)))
    assert task.measure(FrozenFeatures(ALEXNET, 0, CPU), "finetune", 0).details == {"learning rate": 1e-3}
    assert set(counts) == {10}
    # A single image is not held out, so the first rate is taken.
    task = Red(1, TINY)
    assert task.measure(FrozenFeatures(ALEXNET, 0, CPU), "finetune", 0).details == {"learning rate": 3e-4}


def test_the_loss_of_some_images_is_their_mean():
    task, net = Red(10), FCN(ALEXNET.encoder(0), 1).eval()
    rows = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8, 9])  # more than a batch
    with torch.no_grad():
        losses = [
            task.loss(net(task.train.images[[i]].float() / 255), task.train.targets[[i]]).item() for i in rows.tolist()
        ]
    assert task._mean_loss(net, rows) == pytest.approx(statistics.fmean(losses), rel=1e-4)


def test_other_data_or_settings_have_other_keys():
    for protocol in ("frozen", "finetune"):
        usual = Red().settings(protocol)
        assert Red().settings(protocol) == usual
        assert Red(5).settings(protocol) != usual
        assert Red(settings=DenseSettings(steps_frozen=4)).settings(protocol) != usual
        other = Red()
        other.val.targets[0, 0, 0, 0] += 0.5  # before its digest is computed
        assert other.settings(protocol) != usual


def test_options_of_fine_tuning_leave_the_keys_of_frozen_features():
    other = Red(settings=replace(TINY, lr_finetune=(1e-2,)))
    assert other.settings("finetune") != Red().settings("finetune")
    assert other.settings("frozen") == Red().settings("frozen")


def test_pictures_show_predictions_next_to_those_of_random_weights():
    task = Red()
    state = ALEXNET.encoder(7).state_dict()
    both = [Weights("trained", ALEXNET.spec, (state,), baseline="random"), Weights("random", ALEXNET.spec)]
    for weights in both:
        task.measure(FrozenFeatures(weights, 0, CPU), "frozen", 0)
    ((title, picture),) = task.pictures().items()
    assert title == "trained, frozen: input, truth, predicted, by random weights"
    assert picture.shape == (3, 4 * 66 + 2, 4 * 66 + 2)  # four images, four columns
    assert torch.allclose(picture[:, 2:66, 2:66], task.val.images[0].float() / 255)
    assert torch.allclose(picture[:, 2:66, 68:132], task.val.targets[0].expand(3, -1, -1))


def test_bad_settings_are_one_line():
    with pytest.raises(ValueError, match="--steps-finetune must be at least 1, not 0"):
        DenseSettings(steps_finetune=0)
    for rates in ((), (1e-3, 0.0)):
        with pytest.raises(ValueError, match="--lr-finetune must be at least one number above 0, not "):
            DenseSettings(lr_finetune=rates)
    with pytest.raises(ValueError, match="--seeds must be at least 1"):
        DenseSettings(seeds=0)
