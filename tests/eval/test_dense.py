from __future__ import annotations

import pytest
import torch
from helpers.informed_features import Pooled
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from kintsugi.eval import dense
from kintsugi.eval.cells import Cell, Machine, Row, Subject
from kintsugi.eval.dense import FCN, DenseSettings, DenseTask, Labeled, enlarged
from kintsugi.nets.backbones import Backbone

CPU = Machine(torch.device("cpu"), bf16=False)
ALEXNET = Row("alexnet", Backbone("alexnet").plain())
TINY = DenseSettings(steps_frozen=3, steps_finetune=2, batch_dense=2, crop=48)


def blocks(count: int, seed: int) -> Tensor:
    """Blocks of one color, of 8 px, uint8 (N,3,64,64)."""
    random = torch.Generator().manual_seed(seed)
    small = torch.randint(256, (count, 3, 8, 8), generator=random, dtype=torch.uint8)
    return small.repeat_interleave(8, 2).repeat_interleave(8, 3)


class Red(DenseTask):
    """How red is it?"""

    def __init__(self, count: int = 4, settings: DenseSettings = TINY) -> None:
        train, val = (self.labeled(blocks(count, seed)) for seed in (0, 1))
        super().__init__("red", train, val, 1, settings, CPU)

    @staticmethod
    def labeled(images: Tensor) -> Labeled:
        return Labeled(images, images[:, :1].float() / 255)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    def predicted(self, output: Tensor) -> Tensor:
        return output

    def measured(self, prediction: Tensor, protocol: str) -> Cell:
        return Cell({protocol: 1 - (prediction - self.val.targets).abs().mean().item()})

    def painted(self, targets: Tensor) -> list[Tensor]:
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
    frozen = task.frozen(Pooled())
    (maps,) = frozen.maps
    expected = avg_pool2d(torch.cat([task.train.images, task.train.images.flip(-1)]).float() / 255, 8)
    assert torch.allclose(maps, expected)
    assert torch.equal(frozen.rows, torch.arange(20))
    monkeypatch.setattr(dense, "FEATURE_BYTES", maps[:11].nbytes)
    fewer = task.frozen(Pooled())
    assert fewer.rows.tolist() == [0, 4, 8, 12, 16]  # five and their mirror images are ten
    assert torch.allclose(fewer.maps[0], torch.cat([expected[0:20:4], expected[20:40:4]]))


def test_the_head_is_given_each_mirror_image_its_own_target():
    """Where that were mixed up, nobody could learn from pooled colors how red they are."""
    settings = DenseSettings(dense_protocols=("frozen",), steps_frozen=200, batch_dense=4, lr_frozen=0.05)
    task = Red(settings=settings)
    net = task._with_head(task.frozen(Pooled()), 0).eval()
    with torch.no_grad():
        said = net(task.val.images.float() / 255)
    centers = (slice(None), slice(None), slice(4, None, 8), slice(4, None, 8))
    assert (said - task.val.targets)[centers].abs().mean() < 0.06


def test_crops_are_cut_out_of_image_and_target_alike():
    task = Red(settings=DenseSettings(crop=40, batch_dense=16))
    image, target = task.crops(0, 0)
    assert image.shape == (16, 3, 40, 40)
    assert torch.allclose(image[:, :1], target)
    again, other = task.crops(0, 0)[0], task.crops(0, 1)[0]
    assert torch.equal(image, again)
    assert not torch.equal(image, other)
    task.crop = 1000
    whole = task.crops(0, 0)[0]
    pictures = task.train.images.float() / 255
    known = {part.numpy().tobytes() for part in torch.cat([pictures, pictures.flip(-1)])}
    assert all(part.contiguous().numpy().tobytes() in known for part in whole)


def test_what_is_frozen_is_computed_once_and_finetuning_leaves_it(monkeypatch: pytest.MonkeyPatch):
    task, subject = Red(), Subject(ALEXNET, 0, CPU)
    calls: list[str] = []
    for name in ("frozen", "_with_head"):
        method = getattr(Red, name)
        monkeypatch.setattr(
            Red, name, lambda self, *args, name=name, method=method: calls.append(name) or method(self, *args)
        )
    first = task.cell(subject, "frozen", 0)
    frozen = subject.once(task.frozen)
    before = [value.clone() for value in frozen.heads[0].state_dict().values()]
    tuned = task.cell(subject, "finetune", 0)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.heads[0].state_dict().values(), strict=True))
    again = task.cell(subject, "frozen", 0)
    assert again.figures == first.figures
    assert task.cell(subject, "frozen", 1).figures != first.figures  # another head, in another order
    assert calls == ["frozen", "_with_head", "_with_head"]
    # Alone, and of another subject, it is the same.
    assert task.cell(Subject(ALEXNET, 0, CPU), "finetune", 0).figures == tuned.figures


def test_frozen_leaves_the_weights_and_finetune_moves_all_layers():
    task = Red()
    frozen = task.frozen(ALEXNET.encoder(0))
    original = dict(ALEXNET.encoder(0).named_parameters())
    assert all(torch.equal(original[name], p) for name, p in frozen.encoder.named_parameters())
    net = task._with_head(frozen, 0)
    task._train_all(net, 0)
    assert not any(torch.equal(original[name], p) for name, p in net.encoder.named_parameters())


def test_cells_of_other_data_or_settings_are_not_taken_for_these():
    task = Red()
    assert Red().settings() == task.settings()
    assert Red(5).settings() != task.settings()
    assert Red(settings=DenseSettings(steps_frozen=4)).settings() != task.settings()
    other = Red()
    other.val.targets[0, 0, 0, 0] += 0.5  # before its digest is asked for
    assert other.settings() != task.settings()


def test_pictures_show_predictions_beside_those_of_random_weights():
    task = Red()
    state = ALEXNET.encoder(7).state_dict()
    rows = [Row("trained", ALEXNET.spec, state, base="random"), Row("random", ALEXNET.spec)]
    for row in rows:
        task.cell(Subject(row, 0, CPU), "frozen", 0)
    ((title, picture),) = task.pictures().items()
    assert title == "trained, frozen: input, truth, predicted, by random weights"
    assert picture.shape == (3, 4 * 66 + 2, 4 * 66 + 2)  # four images, four columns
    assert torch.allclose(picture[:, 2:66, 2:66], task.val.images[0].float() / 255)
    assert torch.allclose(picture[:, 2:66, 68:132], task.val.targets[0].expand(3, -1, -1))


def test_settings_that_cannot_be_are_one_line():
    with pytest.raises(ValueError, match="--steps-finetune must be at least 1, not 0"):
        DenseSettings(steps_finetune=0)
    with pytest.raises(ValueError, match="--seeds must be at least 1"):
        DenseSettings(seeds=0)
