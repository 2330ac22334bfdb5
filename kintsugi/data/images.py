"""Opens images for training by name: a folder, a torchvision data set, webdataset shards, the built-in scenes."""

from __future__ import annotations

from pathlib import Path

from kintsugi.data.folders import open_files, open_folder
from kintsugi.data.image_set import Images, Split, held_out, shuffled
from kintsugi.data.opener import Opener
from kintsugi.data.rendered import open_scenes
from kintsugi.data.store import Store
from kintsugi.data.torchvision_sets import open_array_set, open_imagenet, voc_detection


def open_images(spec: str, size: int, store: Store = Store(), *, scenes: int = 4096) -> Split:
    """Opens the images that ``spec`` names, for crops of ``size`` px.

    spec is one of:

    - ``scenes``: the first ``scenes`` built-in scenes.
    - a folder of images, searched recursively. If all images lie in two or more subfolders, those are the classes.
    - ``cifar10``, ``stl10`` (with its unlabeled images) or ``voc2012``: downloaded by torchvision.
    - ``imagenet:PATH``: a folder with ImageNet's archives, or with train/ and val/.
    - ``shards:WHAT``: webdataset shards. WHAT is a folder of .tar files, or a path or http(s) URL, with braces for
      several shards, as in set-{000..099}.tar.

    Images are stored as ``store`` says: cropped around their middle to at most 2:1, then shrunk to the short side, but
    never enlarged. Images that are smaller than the crop or cannot be read are skipped, and reported in one line.

    About 5 % of the images are held out, chosen by a hash of their names (``image_set.held_out``). torchvision's sets
    are split as their authors did.

    Raises ValueError with one line if no image is left for training, and OSError if the cache cannot be written.
    """
    opener = Opener(spec, size, store)
    if spec == "scenes":
        return held_out(open_scenes(opener, scenes))
    if spec in ("cifar10", "stl10"):
        return Split(open_array_set(opener, "train"), shuffled(open_array_set(opener, "test")))
    if spec == "voc2012":
        train, val = (
            open_files(opener, voc_detection(spec, split, "2012", store).images) for split in ("train", "val")
        )
        return Split(train, shuffled(val))
    if spec.startswith("imagenet:"):
        train, val = _open_imagenet_splits(opener)
        if val.labels is not None and train.classes != val.classes:
            raise ValueError(f"--data {spec}: train/ and val/ do not have the same classes")
        return Split(train, shuffled(val))
    if spec.startswith("shards:"):
        from kintsugi.data.shards import open_shards  # imported here: only shards need webdataset

        return held_out(open_shards(opener, spec.removeprefix("shards:")))
    return held_out(open_folder(opener, Path(spec).expanduser()))


def open_labeled(spec: str, size: int, store: Store = Store()) -> Split:
    """Opens images with one class each: ``train`` for training, ``heldout`` for testing.

    spec: a folder with train/ and test/ (or val/), each with a folder for each class; or ``cifar10``, ``stl10``,
    ``imagenet:PATH``. Everything else is as in ``open_images``. Raises ValueError with one line if there are no
    classes, or if the two splits have different classes.
    """
    opener = Opener(spec, size, store)
    if spec in ("cifar10", "stl10"):
        splits = [open_array_set(opener, "train"), open_array_set(opener, "test")]
    elif spec.startswith("imagenet:"):
        splits = _open_imagenet_splits(opener)
    else:
        root = Path(spec).expanduser()
        test = "test" if (root / "test").is_dir() else "val"
        if not all((root / name).is_dir() for name in ("train", test)):
            raise ValueError(
                f"--data {spec}: no train/ and test/ in it; make both, with a folder for each class, or use cifar10, "
                "stl10 or imagenet:PATH"
            )
        splits = [open_folder(opener, root / name) for name in ("train", test)]
    for images in splits:
        if images.labels is None:
            raise ValueError(f"--data {spec}: its images are not in class folders")
    if splits[0].classes != splits[1].classes:
        raise ValueError(f"--data {spec}: the two splits do not have the same classes")
    return Split(*map(_without_unlabeled, splits))


def _open_imagenet_splits(opener: Opener) -> list[Images]:
    path = Path(opener.spec.removeprefix("imagenet:")).expanduser()
    return [open_imagenet(opener, path, split) for split in ("train", "val")]


def _without_unlabeled(images: Images) -> Images:
    """The images that have a label. STL-10 has unlabeled images too."""
    assert images.labels is not None
    return images.subset((images.labels >= 0).nonzero()[:, 0])
