"""The one list of all programs: those that train a method, and those that evaluate or use the result.

The command ``kintsugi``, the Makefile's jobs, ``make help``, ``make transfer`` and the tests all read this list. It is
pure data and imports only the standard library, so that ``make help`` works before anything is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Program(NamedTuple):
    """One program: a module with a function ``main(argv)`` that reads the program's own options."""

    group: str
    """``train`` or ``eval``; empty for a program outside these groups, such as ``kintsugi mend``."""
    name: str
    """The word after the group, as in ``kintsugi train NAME``. A method's runs are kept in ``runs/NAME``."""
    module: str
    """The module that holds ``main``."""
    summary: str
    """What it does, in one line."""
    takes: tuple[str, ...]
    """The Makefile's variables that the job reads besides ARGS=: DATA, CKPT and so on."""

    @property
    def words(self) -> str:
        """The words after ``kintsugi``, such as ``train inpainting`` or ``mend``."""
        return f"{self.group} {self.name}".strip()

    @property
    def job(self) -> str:
        """The Makefile's target, such as ``train-inpainting`` or ``mend``."""
        return self.words.replace(" ", "-")


def _method(name: str, module: str, summary: str, *more: str) -> Program:
    return Program("train", name, module, summary, ("DATA", "GPUS", "NODES", "HEAD", *more))


def _measure(name: str, module: str, summary: str, *takes: str) -> Program:
    return Program("eval", name, module, summary, takes or ("CKPT", "DATA"))


METHODS = (
    _method(
        "inpainting",
        "kintsugi.recon.inpainting",
        "context encoder (Pathak 2016): paint what a hole hides, judged by a discriminator",
    ),
    _method(
        "mender",
        "kintsugi.recon.mender",
        "the mender, after LaMa (Suvorov 2021): mend photos of any size, with fast Fourier convolutions",
    ),
    _method(
        "colorization", "kintsugi.recon.colorization", "colorization (Zhang 2016): predict the colors of a gray image"
    ),
    _method(
        "superresolution",
        "kintsugi.recon.superresolution",
        "SRResNet, then SRGAN (Ledig 2017): enlarge an image four times",
    ),
    _method(
        "splitbrain",
        "kintsugi.recon.splitbrain",
        "split-brain autoencoder (Zhang 2017): predict color from lightness and back",
    ),
    _method(
        "splitbrain-hha",
        "kintsugi.recon.splitbrain_hha",
        "the same with depth; data: a folder with rgb/, depth/ and intrinsics.txt",
    ),
    _method(
        "mae",
        "kintsugi.recon.mae",
        "MAE (He 2021): predict masked patches from the visible ones, with a vision transformer",
    ),
    _method(
        "spark",
        "kintsugi.recon.spark",
        "SparK (Tian 2023): paint masked cells from the visible ones, with a convolutional network",
    ),
    _method(
        "synthetic",
        "kintsugi.recon.synthetic",
        "synthetic to real (Ren and Lee 2018): depth, normals, contours of scenes, adapted to photos",
        "REAL",
    ),
    _method(
        "cpc",
        "kintsugi.contrastive.cpc",
        "CPC (van den Oord 2018): predict an image's lower patches from the upper ones",
    ),
    _method(
        "simclr",
        "kintsugi.contrastive.simclr",
        "SimCLR (Chen 2020): match two views of an image among all others of the batch",
    ),
    _method(
        "moco",
        "kintsugi.contrastive.moco",
        "MoCo v2 (He 2020): match two views of an image against a queue (v1: --version 1)",
    ),
    _method(
        "byol",
        "kintsugi.contrastive.byol",
        "BYOL (Grill 2020): predict a slow copy's features of the other view, without negatives",
    ),
    _method(
        "dino",
        "kintsugi.contrastive.dino",
        "DINO (Caron 2021): predict a slow teacher's choice among many outputs, from small crops too",
    ),
    _method(
        "lejepa",
        "kintsugi.contrastive.lejepa",
        "LeJEPA (Balestriero 2025): predict one crop from the others, keep features normally distributed",
    ),
    _method(
        "distill",
        "kintsugi.contrastive.distill",
        "distillation: learn a frozen teacher's features on your own images, without labels",
        "TEACHER",
    ),
    _method(
        "rotation",
        "kintsugi.pretext.rotation",
        "rotation (Gidaris 2018): predict by how many quarter turns an image was rotated",
    ),
    _method(
        "jigsaw", "kintsugi.pretext.jigsaw", "jigsaw (Noroozi 2016): predict in which order nine tiles were shuffled"
    ),
    _method(
        "context",
        "kintsugi.pretext.context",
        "context prediction (Doersch 2015): predict where one patch lies relative to another",
    ),
    _method(
        "deepcluster",
        "kintsugi.pretext.deepcluster",
        "DeepCluster (Caron 2018): predict the clusters of the network's own features",
    ),
    _method(
        "sela", "kintsugi.pretext.sela", "SeLa (Asano 2020): predict self-made labels that are all used equally often"
    ),
    _method(
        "cliquecnn",
        "kintsugi.pretext.cliquecnn",
        "CliqueCNN (Bautista 2016): tell compact cliques of similar images apart",
    ),
    _method(
        "frame-order",
        "kintsugi.pretext.frame_order",
        "Shuffle and Learn (Misra 2016): are three frames in order? data: videos, or folders of frames",
    ),
    _method(
        "odd-one-out",
        "kintsugi.pretext.odd_one_out",
        "odd-one-out (Fernando 2017): which sub-clip is out of order? data: as for frame-order",
    ),
    _method(
        "supervised",
        "kintsugi.eval.supervised",
        "supervised baseline, from scratch; data: a folder with train/ and test/, or cifar10",
    ),
)
"""Every method, and the supervised baseline, in the order of the tables."""

PROGRAMS = (
    *METHODS,
    _measure("inpainting", "kintsugi.eval.hole_quality", "quality of mended holes, compared with classical methods"),
    _measure(
        "colorization",
        "kintsugi.eval.color_quality",
        "accuracy of ab, PSNR, LPIPS and chroma of colorized photos, compared with gray and the mean color",
    ),
    _measure(
        "superresolution",
        "kintsugi.eval.upscaling_quality",
        "PSNR, SSIM and LPIPS of enlarged images, compared with bicubic enlargement",
    ),
    _measure(
        "domains",
        "kintsugi.eval.domains",
        "synthetic to real with and without its discriminator, three seeds each",
        "REAL",
        "DATA",
    ),
    _measure(
        "classification",
        "kintsugi.eval.classification",
        "transfer features to classification; data: a folder with train/ and test/, or cifar10",
    ),
    _measure(
        "segmentation", "kintsugi.eval.segmentation", "transfer features to segmentation, compared with random weights"
    ),
    _measure(
        "geometry",
        "kintsugi.eval.geometry",
        "transfer features to depth and normals; data: as for splitbrain-hha, or scenes",
    ),
    _measure(
        "detection",
        "kintsugi.eval.detection",
        "transfer features to Faster R-CNN; data: voc2007, a folder like it, or scenes",
    ),
    Program(
        "",
        "transfer",
        "kintsugi.eval.transfer",
        "every method under every task in one table (default: the latest runs)",
        ("CKPT",),
    ),
    Program(
        "", "export", "kintsugi.eval.export", "write a checkpoint's encoder as safetensors and ONNX", ("CKPT", "OUT")
    ),
    Program(
        "",
        "mend",
        "kintsugi.apps.mend",
        "mend a photo or a folder of photos; in the mask, white = hole",
        ("IN", "MASK", "OUT", "CKPT"),
    ),
    Program(
        "", "colorize", "kintsugi.apps.colorize", "colorize a gray photo or a folder", ("IN", "OUT", "HINTS", "CKPT")
    ),
    Program("", "upscale", "kintsugi.apps.upscale", "enlarge a photo or a folder four times", ("IN", "OUT", "CKPT")),
    Program(
        "",
        "surfaces",
        "kintsugi.apps.surfaces",
        "depth, normals and contours of a photo or a folder (train synthetic first)",
        ("IN", "OUT", "CKPT"),
    ),
    Program(
        "",
        "studio",
        "kintsugi.apps.studio",
        "a page in the browser: mend with a brush, colorize, upscale, see",
        ("CKPT",),
    ),
    Program("", "scenes", "kintsugi.apps.scenes", "draw a contact sheet of the built-in scenes", ("OUT",)),
)
"""Every program, in the order in which the help lists them."""


GROUPS = {
    "train": "Train a method",
    "eval": "Measure a checkpoint, or transfer its features",
    "": "Use what was trained",
}
"""Group -> its heading in the help."""


def command_line(words: str, ckpt: Path) -> str:
    """How to run a program on a checkpoint: by make in a checkout, else by the command ``kintsugi``.

    words: those after ``kintsugi``. The person fills in the other values.
    """
    (program,) = (p for p in PROGRAMS if p.words == words)
    others = [name for name in program.takes if name not in ("CKPT", "HINTS")]
    if _in_checkout():
        return " ".join(["make", program.job, *(f"{name}=" for name in others), f"CKPT={ckpt}"])
    return " ".join(["kintsugi", words, *(f"--{name.lower()} {name}" for name in others), f"--ckpt {ckpt}"])


def see_runs() -> str:
    """How to see the runs in TensorBoard."""
    return "make tensorboard" if _in_checkout() else "tensorboard --logdir runs"


def _in_checkout() -> bool:
    """Whether the current folder is a checkout, with its Makefile."""
    return Path("Makefile").is_file() and Path("kintsugi/catalog.py").is_file()


def make_help() -> str:
    """The text of ``make help``: one line for each of the Makefile's jobs that runs a program."""
    # Printed once, in the group's heading.
    usual = {"train": ("DATA", "GPUS", "NODES", "HEAD"), "eval": ("CKPT", "DATA"), "": ()}
    lines = ["DATA= any data, ARGS= any option, GPUS= how many, CKPT= a run's folder or a checkpoint", ""]
    for group, heading in GROUPS.items():
        lines.append(f"{heading}: {' '.join(f'{name}=' for name in (*usual[group], 'ARGS'))}")
        for p in PROGRAMS:
            if p.group == group:
                more = "".join(f" {name}=" for name in p.takes if name not in usual[group])
                lines.append(f"make {p.job:<21} {p.summary}{more and ':'}{more}")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(make_help())
