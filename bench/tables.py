"""The tables of the documentation, made from ``bench/results``, so that no figure is typed by hand.

``python -m bench.tables`` rewrites every table that a page of ``docs/`` holds between two markers::

    <!-- table: NAME -->
    <!-- end of table -->

A table has its command, its machine and its number of runs under it. A test fails where a page is not up to date.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kintsugi import table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end of table -->)", re.DOTALL)

XEON = "one core of a two-core Xeon with AMX, bfloat16"
XEON_FP32 = "one core of a two-core Xeon, float32"
EPYC = "one core of a two-core AMD EPYC with AVX512-BF16, bfloat16"

LABELS = {
    "mean colour": "mean color",
    "mean ab": "mean color",
    "grey": "gray",
    "the scenes' mean": "mean of the scenes",
    "... seamless": "context encoder, seamless",
    "colorization": "colorization",
    "splitbrain": "split-brain",
    "splitbrain-hha": "split-brain with depth",
    "synthetic": "synthetic to real",
    "random init": "random weights",
    "inpainting": "inpainting, generator",
    "superresolution": "super-resolution, generator",
    "superresolution, discriminator": "super-resolution, discriminator",
    "autoencoder": "plain autoencoder",
    "cpc": "CPC",
    "simclr": "SimCLR",
    "moco": "MoCo v2",
    "byol": "BYOL",
    "context": "context prediction",
    "deepcluster": "DeepCluster",
    "sela": "SeLa",
    "cliquecnn": "CliqueCNN",
    "frame-order": "Shuffle and Learn",
    "odd-one-out": "odd-one-out",
    "supervised": "supervised, from scratch",
    "squeezenet1_0, squeezenet1_0_imagenet.safetensors": "SqueezeNet, ImageNet labels",
}
"""How the results' own names are printed."""

RANDOM = {
    "inpainting, discriminator": "random init (discriminator)",
    "colorization": "random init (resnet18, L)",
    "splitbrain": "random init (two halves)",
    "superresolution": "random init (srresnet)",
    "superresolution, discriminator": "random init (srgan-discriminator)",
    "synthetic": "random init (alexnet)",
    "cpc": "random init (resnet18, group norm)",
    "moco": "random init (resnet18, split norm)",
    "squeezenet1_0, squeezenet1_0_imagenet.safetensors": "random init (squeezenet1_0)",
}
"""Random weights of the network of each row of the transfer reports; of the others, those of ``RESNET18``."""
RESNET18 = "random init (resnet18)"

COLUMNS = {
    "caltech101: kNN": "Caltech-101 kNN",
    "caltech101: linear": "linear",
    "caltech101: 1 % of labels": "1 % of labels",
    "caltech101: 10 % of labels": "10 % of labels",
    "segmentation camvid: frozen mIoU": "CamVid frozen mIoU",
    "geometry rgbd_kitchen: frozen depth within 25 %": "kitchen depth within 25 %",
    "geometry rgbd_kitchen: frozen normals within 22.5°": "kitchen normals within 22.5°",
    "what is in scenes: linear": "objects, linear",
    "segmentation scenes: frozen mIoU": "segments, mIoU",
    "geometry scenes: frozen depth within 25 %": "depth within 25 %",
    "geometry scenes: frozen normals within 22.5°": "normals within 22.5°",
    "cifar10-part: kNN": "CIFAR-10 kNN",
    "cifar10-part: linear": "linear",
    "figure-ground davis: frozen J": "DAVIS J",
}
"""The columns of the transfer reports, and how they are printed."""

Rows = dict[str, dict[str, str]]
"""Row -> column -> what is printed."""


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def label(name: str) -> str:
    if name.startswith("random init ("):
        return name.replace("random init", "random weights")
    return LABELS.get(name, name)


def mean_and_deviation(values: list[float], digits: int = 1, scale: float = 100) -> str:
    """Mean and standard deviation of a figure over seeds, in per cent unless ``scale`` is 1."""
    mean, deviation = scale * statistics.fmean(values), scale * statistics.stdev(values)
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def with_source(rows: Rows, corner: str, command: str, machine: str, runs: str) -> str:
    """A table and, under it, where its figures come from."""
    return f"{table.markdown(rows, corner)}\n\n*{command}. {machine[0].upper()}{machine[1:]}. {runs}.*"


def columns_of(figures: Mapping[str, Mapping[str, float]], columns: Mapping[str, tuple[str, str]]) -> Rows:
    """Rows of figures by the columns' keys -> printed name and format."""
    return {
        label(row): {name: format(values[key], form) for key, (name, form) in columns.items() if key in values}
        for row, values in figures.items()
    }


# --- quality of the methods -----------------------------------------------------------------------------------


def demos() -> str:
    """What each demo reaches on held-out scenes, and what needs no learning."""
    hole = load("inpainting-quality-scenes-demo")["center"]
    color, enlarged = load("demo-colorization"), load("demo-superresolution")
    split, depth, surfaces = load("demo-splitbrain"), load("demo-splitbrain-hha"), load("demo-synthetic")
    lines = {
        "inpainting": ("PSNR in the hole, dB", hole["context encoder"]["psnr"], hole["biharmonic"]["psnr"]),
        "colorization": (
            "balanced accuracy of ab, %",
            color["colorization"]["auc_rebalanced"],
            color["mean ab"]["auc_rebalanced"],
        ),
        "super-resolution": ("PSNR, dB", enlarged["superresolution"]["psnr"], enlarged["bicubic"]["psnr"]),
        "split-brain": ("PSNR of both planes, dB", split["splitbrain"]["psnr"], split["mean colour"]["psnr"]),
        "split-brain with depth": (
            "PSNR of HHA, dB",
            depth["splitbrain-hha"]["hha_psnr"],
            depth["mean of each plane"]["hha_psnr"],
        ),
        "synthetic to real": (
            "mean error of normals, degrees",
            surfaces["synthetic"]["normal_degrees"],
            surfaces["the scenes' mean"]["normal_degrees"],
        ),
    }
    without = ("biharmonic", "mean color", "bicubic", "mean color", "mean planes", "mean of the scenes")
    rows = {
        name: {"figure": figure, "after the demo": f"{learned:.1f}", "without learning": f"{baseline:.1f} ({what})"}
        for (name, (figure, learned, baseline)), what in zip(lines.items(), without, strict=True)
    }
    return with_source(
        rows,
        "demo, held-out scenes",
        "`make train-...` without options",
        f"{XEON_FP32}, but inpainting on two cores, colorization on two of an EPYC and super-resolution on another "
        "machine that was busy",
        "One run each",
    )


def contrastive_demos() -> str:
    """How often another view of a scene is found among the held-out scenes."""
    rows = {
        label(name): {
            "found, %": f"{load(f'demo-{name}')[name]['same_image']:.1f}",
            "random weights": f"{load(f'demo-{name}')['random init']['same_image']:.1f}",
            "pixels": f"{load(f'demo-{name}')['pixels']['same_image']:.1f}",
        }
        for name in ("simclr", "moco")
    }
    return with_source(
        rows,
        "demo, held-out scenes",
        "`make train-simclr`, `make train-moco`",
        f"{XEON_FP32}, the other busy",
        "One run each",
    )


def inpainting() -> str:
    """Quality in the hole, of the context encoder and of fills without learning."""
    sets = {
        "scenes, demo, 64 px": load("inpainting-quality-scenes-demo"),
        "Caltech-101 test, 96 px": load("inpainting-quality-caltech101"),
        "BSDS500, 96 px": load("inpainting-quality-bsds500"),
    }
    rows = {
        f"{images}, {hole}": {
            label(fill): f"{of['psnr']:.2f} / {of['ssim']:.3f} / {of['l1']:.1f} / {of['l2']:.2f}"
            for fill, of in fills.items()
        }
        for images, holes in sets.items()
        for hole, fills in holes.items()
    }
    return with_source(
        rows,
        "images, hole",
        "`make eval-inpainting CKPT=... DATA=... ARGS=\"--split all\"`",
        "scenes: two cores of a Xeon, float32. Photos: one core of a Xeon with AMX, bfloat16",
        "One run each",
    )


def colorization() -> str:
    chroma_truth = load("colorization-caltech101")["grey"]["chroma_truth"]
    columns = {
        "auc": ("accuracy of ab, %", ".1f"),
        "auc_rebalanced": ("balanced accuracy, %", ".1f"),
        "psnr": ("RGB PSNR, dB", ".1f"),
        "chroma": (f"mean chroma (truth {chroma_truth:.1f})", ".1f"),
    }
    return with_source(
        columns_of(load("colorization-caltech101"), columns),
        "256 held-out photos, 96 px",
        '`make train-colorization DATA=caltech101/train ARGS="--preset small --steps 1600"`, 36 minutes',
        XEON,
        "One run",
    )


def set5() -> str:
    columns = {
        "psnr": ("PSNR, dB", ".2f"),
        "ssim": ("SSIM", ".3f"),
        "VGG19 relu3_4": ("distance in VGG19 relu3_4", ".3f"),
    }
    found = load("superresolution-set5")
    names = {"bicubic": "bicubic", "runs/sr": "SRResNet, 8 blocks of 48", "runs/srgan2": "SRGAN, started from it"}
    rows = columns_of({names[name]: figures for name, figures in found.items()}, columns)
    return with_source(rows, "Set5, x4", "`make eval-superresolution CKPT=... DATA=Set5/HR`", XEON, "One run each")


def splitbrain() -> str:
    columns = {
        "psnr": ("PSNR of both predictions, dB", ".1f"),
        "auc": ("accuracy of ab, %", ".1f"),
        "auc_rebalanced": ("balanced accuracy, %", ".1f"),
        "lightness_rms": ("L, rms error of 100", ".1f"),
    }
    return with_source(
        columns_of(load("splitbrain-caltech101"), columns),
        "256 held-out photos, 96 px",
        '`make train-splitbrain DATA=caltech101/train ARGS="--preset small --steps 1600"`, 31 minutes',
        XEON,
        "One run",
    )


def splitbrain_hha() -> str:
    columns = {
        "hha_psnr": ("HHA, dB", ".1f"),
        "disparity": ("disparity, levels", ".1f"),
        "height": ("height, cm", ".1f"),
        "angle": ("angle, degrees", ".1f"),
        "auc": ("accuracy of ab, %", ".1f"),
        "lightness_rms": ("L, rms error of 100", ".1f"),
    }
    return with_source(
        columns_of(load("splitbrain-hha-kitchen"), columns),
        "12 held-out frames",
        '`make train-splitbrain-hha DATA=rgbd_kitchen ARGS="--preset small --steps 600 --batch 32 --short-side 160"`, '
        "10 minutes",
        XEON,
        "One run",
    )


def hha() -> str:
    """Our HHA against the picture that the authors' program made, and its speed."""
    found = load("hha")
    rows = {
        plane: {"equal pixels, %": f"{100 * of['equal']:.1f}", "largest difference, levels": f"{of['largest']}"}
        for plane, of in found["against the authors' picture, levels"].items()
    }
    times = ", ".join(f"{ms:.0f} ms in batches of {n}" for n, ms in found["ms per frame by batch, median of 10"].items())
    machine = f"two idle cores, {found['machine']}, PyTorch {found['torch']}"
    return with_source(rows, "plane", "`python -m bench.hha_rate`", machine, f"A frame of 640x480 takes {times}")


def synthetic() -> str:
    columns = {
        "depth_within_25": ("depth within 25 %", ".3f"),
        "normal_degrees": ("mean error of normals, degrees", ".1f"),
        "normal_within_30": ("normals within 30°", ".3f"),
        "contour_ap": ("contours, AP", ".3f"),
    }
    return with_source(
        columns_of(load("synthetic-scenes"), columns),
        "held-out scenes, 96 px",
        '`make train-synthetic REAL=caltech101/train ARGS="--size 96 --scenes 1536 --steps 800 --batch 32"`',
        XEON,
        "One run",
    )


def domains() -> str:
    """What the discriminator of synthetic to real does, over seeds."""
    found = load("domains-scenes-caltech101")
    columns = {
        "domain_accuracy": ("discriminator's accuracy", 3),
        "domain_frechet": ("Frechet distance per channel", 3),
        "domain_probe": ("linear probe's accuracy", 3),
        "depth_within_25": ("depth within 25 %", 3),
        "normal_degrees": ("normals, degrees", 1),
        "contour_ap": ("contours, AP", 3),
    }
    rows = {
        {"without": "none"}.get(way, f"`{way}`"): {
            name: mean_and_deviation(figures[key], digits, 1) for key, (name, digits) in columns.items()
        }
        for way, figures in found["figures"].items()
    }
    settings = found["settings"]
    return with_source(
        rows,
        "adversary",
        f'`make eval-domains REAL={settings["real"]} ARGS="--scenes {settings["scenes"]} --steps {settings["steps"]}"`',
        XEON,
        f"{settings['seeds']} seeds each",
    )


# --- transfer -------------------------------------------------------------------------------------------------


def cells(report: str) -> dict[str, dict[str, dict[int, float]]]:
    """Row -> column -> seed -> figure, of a transfer report."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for cell in load(f"transfer/{report}")["cells"]:
        for name, value in cell["figures"].items():
            column = found.setdefault(cell["row"], {}).setdefault(f"{cell['task']}: {name}", {})
            column[cell["seed"]] = value
    return found


def with_gain(values: Mapping[int, float], random: Mapping[int, float]) -> str:
    """Mean and deviation over seeds; in brackets the gain over random weights, and the seeds on which it was won."""
    text = mean_and_deviation(list(values.values()))
    gains = [100 * (values[seed] - random[seed]) for seed in values if seed in random]
    if not gains:
        return text
    return f"{text} ({statistics.fmean(gains):+.1f}, {sum(gain > 0 for gain in gains)}/{len(gains)})"


def transfer_rows(report: str, names: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()) -> Rows:
    """The rows of a transfer report (default: all), those of random weights and of raw pixels last."""
    found = cells(report)

    def last(row: str) -> bool:
        return row.startswith("random") or row == "pixels"

    rows = {}
    for row in sorted(names or found, key=last):
        random = found.get(RANDOM.get(row, RESNET18), {}) if not last(row) else {}
        rows[label(row)] = {
            COLUMNS[column]: with_gain(values, random.get(column, {}))
            for column, values in found[row].items()
            if column not in leave_out
        }
    return rows


def transfer(report: str, *names: str) -> str:
    """A transfer report, or some of its rows and random weights of their networks."""
    wanted = tuple(dict.fromkeys([*names, *(RANDOM.get(name, RESNET18) for name in names)]))
    leave_out = ("caltech101: 1 % of labels",)
    command = {
        "report": "`make transfer` with the options below",
        "scenes": '`make transfer ARGS="--classification scenes --segmentation scenes --geometry scenes ..."`',
        "cifar10": '`make transfer ARGS="--size 32 --classification cifar10-part ..."`',
        "figure-ground": '`make transfer ARGS="--figure-ground davis ..."`',
    }[report]
    if names:
        command = "`make transfer` with the options of [One budget](../one-budget.md)"
    machine = EPYC
    if report == "report" and (not names or "moco" in names):
        machine = XEON if names else f"{EPYC}; MoCo on {XEON}"
    seeds = load(f"transfer/{report}")["settings"]["seeds"]
    runs = f"One pre-training each, {seeds} seeds of transfer; all in per cent"
    return with_source(transfer_rows(report, wanted, leave_out), "weights", command, machine, runs)


def camvid() -> str:
    """Segmentation of CamVid by the checkpoints of the methods' own pages, frozen and fine-tuned."""
    sources = {
        "inpainting, generator": ("frozen-and-high-rate", "finetune", "generator"),
        "inpainting, discriminator": ("discriminator", "discriminator", "discriminator"),
        "colorization": ("colorization", "colorization", "generator"),
        "super-resolution, generator": ("superresolution", "superresolution", "generator"),
        "super-resolution, discriminator": ("superresolution", "superresolution", "discriminator"),
        "split-brain": ("splitbrain", "splitbrain", "generator"),
        "split-brain with depth, RGB half": ("splitbrain-hha", "", "generator"),
        "synthetic to real": ("synthetic", "", "generator"),
    }
    rows: Rows = {}
    for name, (frozen, finetuned, role) in sources.items():
        rows[name] = _camvid_cells(frozen, role, "frozen", "frozen")
        rows[name] |= _camvid_cells(finetuned, role, "finetune", "fine-tuned") if finetuned else {}
    return with_source(
        rows,
        "encoder",
        '`make eval-segmentation CKPT=... DATA=camvid ARGS="--void 11 --precision bf16"`',
        XEON,
        "One pre-training each, 3 seeds of transfer; mIoU, %",
    )


def _camvid_cells(file: str, role: str, protocol: str, title: str) -> dict[str, str]:
    found = load(f"segmentation-camvid-{file}")["miou"][role][protocol]
    learned, random = found["pretrained"], found["random"]
    gains = [100 * (a - b) for a, b in zip(learned, random, strict=True)]
    return {
        title: mean_and_deviation(learned),
        f"{title}, random weights": mean_and_deviation(random),
        f"{title}, gain": f"{statistics.fmean(gains):+.1f} ({sum(gain > 0 for gain in gains)}/{len(gains)})",
    }


def cifar10() -> str:
    """The short runs on CIFAR-10."""
    found = load("cifar10")

    def cell(column: str, row: str) -> str:
        value = found[column].get(row)
        return f"{value[0]} ± {value[1]}" if value else ""

    rows = {
        label(row): {
            "images seen": f"{found['images seen'][row]:,}" if row in found["images seen"] else "",
            "kNN": f"{found['kNN'][row][0]}",
            "kNN, random weights": cell("kNN, random weights of the same network", row),
            "linear": cell("linear", row),
            "linear, random weights": cell("linear, random weights of the same network", row),
        }
        for row in found["kNN"]
    }
    command = "The commands are below"
    return with_source(rows, "CIFAR-10, %", command, found["machine"], "One pre-training each, 3 seeds of transfer")


# --- speed ----------------------------------------------------------------------------------------------------


def machine_of(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    precision = found["settings"].get("precision", "fp32")
    return f"{machine['cores']} cores of an {machine['processor']}, {precision}, PyTorch {machine['torch']}"


def loaders() -> str:
    """Two augmented views of each image, compared with other libraries."""
    found = load("loaders")
    names = {
        "ours": "Kintsugi, one process of two threads",
        "ours, ranks": "Kintsugi, two processes of one thread",
        "ours, first pass": "Kintsugi, its first pass",
        "lightly": "lightly 1.6, two workers",
        "stable_pretraining": "stable-pretraining 0.1.8, two workers",
        "torchvision": "torchvision v2, two workers",
    }
    rows: Rows = {}
    for key, name in names.items():
        rows[name] = {}
        for size, rates in found["images a second"].items():
            rows[name][f"{size}, images/s"] = f"{rates[key]:.0f}"
            if not key.startswith("ours"):
                ratios = (rates[ours] / rates[key] for ours in ("ours", "ours, ranks"))
                rows[name][f"{size}, Kintsugi is faster by"] = ", ".join(f"{ratio:.1f}" for ratio in ratios)
    return with_source(
        rows,
        "reader",
        "`python -m bench.loaders --data bsds500 --like-imagenet`",
        machine_of(found),
        f"Median of {found['settings']['rounds']} rounds in turns, {found['settings']['epochs']} epochs each, one run",
    )


def steps() -> str:
    """Whole training steps against the networks' own work."""
    found = load("steps")
    batch = found["settings"]["batch"]
    rows: Rows = {}
    for name, of in found["contrastive, ms"].items():
        rows[label(name)] = {
            "whole step, ms": f"{of['whole step']:.0f}",
            "over the networks alone": f"{of['whole step'] / of['model only']:.2f}",
            "images/s": f"{1000 * batch / of['whole step']:.0f}",
        }
    for name, of in found["GAN, ms"].items():
        rows[{"inpainting": "inpainting", "superresolution": "super-resolution"}[name]] = {
            "whole step, ms": f"{of['whole step']:.0f}",
            "over the networks alone": f"{of['whole over networks']:.2f}",
        }
    settings = found["settings"]
    setting = f"{settings['size']} px, batch {batch}"
    return with_source(
        rows, setting, "`python -m bench.steps`", machine_of(found), f"Median of {settings['rounds']} rounds, one run"
    )


def growth() -> str:
    """How speed grows with threads, ranks, batches and sizes, on two machines."""
    machines = {"EPYC": load("growth"), "Xeon": load("growth-xeon")}
    rows: Rows = {}
    for name, found in machines.items():
        for line, value in _growth_lines(found["growth"]).items():
            rows.setdefault(line, {})[name] = value
    both = "; ".join(f"{name}: {machine_of(found)}" for name, found in machines.items())
    return with_source(rows, "what", "`python -m bench.growth`", both, "One run each")


def _growth_lines(found: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    names = {
        "images/s of updates by batch": "SimCLR update, images/s, batch {}",
        "by size": "SimCLR update, images/s, {} px",
        "by threads": "SimCLR update, images/s, threads: {}",
        "images/s of two views by size": "two views, images/s, {} px",
        "views by threads": "two views, images/s, threads: {}",
        "options, times as fast": "update, times as fast: {}",
        "seconds to open by images": "opening a folder of images, s: {}",
        "scenes/s": "built-in scenes, images/s, {}",
        "HHA frames/s, 640x480": "HHA of 640x480, frames/s",
        "images/s of trainings by ranks": "whole training, images/s, ranks of one core: {}",
    }
    return {
        names[group].format(key): f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        for group, values in found.items()
        for key, value in values.items()
    }


def contrastive_losses() -> str:
    found = load("contrastive-losses")
    rows = {
        name: {
            "difference of values": f"{of['difference of values']:.1e}",
            "relative difference of gradients": f"{of['relative difference of gradients']:.1e}",
            "ms": f"{of['milliseconds']:.2f}",
            "lightly, ms": f"{of['lightly, milliseconds']:.2f}",
        }
        for name, of in found.items()
        if name != "settings"
    }
    settings = found["settings"]
    return with_source(
        rows,
        "loss",
        "`python -m bench.contrastive_losses`",
        f"{settings['threads']} threads, batch {settings['batch']}, {settings['dimensions']} dimensions, "
        f"PyTorch {settings['torch']}",
        "One run",
    )


# --- pages ----------------------------------------------------------------------------------------------------

TABLES: dict[str, Callable[[], str]] = {
    "demos": demos,
    "contrastive demos": contrastive_demos,
    "inpainting": inpainting,
    "colorization": colorization,
    "Set5": set5,
    "split-brain": splitbrain,
    "split-brain with depth": splitbrain_hha,
    "HHA": hha,
    "synthetic to real": synthetic,
    "domains": domains,
    "CamVid": camvid,
    "CIFAR-10": cifar10,
    "loaders": loaders,
    "steps": steps,
    "growth": growth,
    "contrastive losses": contrastive_losses,
}


def block(name: str) -> str:
    """The table that a page calls ``name``: one of ``TABLES``, or ``transfer REPORT`` and its rows, each after a
    semicolon (``transfer report; simclr``)."""
    if name.startswith("transfer "):
        report, *rows = (word.strip() for word in name.removeprefix("transfer ").split(";"))
        return transfer(report, *rows)
    if name not in TABLES:
        raise ValueError(f"no table {name!r}: use {', '.join(TABLES)} or transfer REPORT; ROW; ...")
    return TABLES[name]()


def refreshed(text: str) -> str:
    """A page with all of its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2])}\n{found[3]}", text)


def pages() -> list[Path]:
    """Every page of the documentation, sorted."""
    return sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)


def main() -> None:
    for page in pages():
        before = page.read_text()
        after = refreshed(before)
        if after != before:
            page.write_text(after)
            print(f"refreshed {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
