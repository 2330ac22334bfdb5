"""Tables of how well features transfer to other tasks, compared with random weights of the same network."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from bench.printing import EPYC, EPYC_FP32, XEON, Rows, label, load, mean_and_deviation, with_source

RESNET18 = "random init (resnet18)"
VIT = "random init (vit_tiny_patch16_224, patches of 8 px)"
RANDOM = {
    "inpainting, discriminator": "random init (discriminator)",
    "colorization": "random init (resnet18, L)",
    "splitbrain": "random init (two halves)",
    "superresolution": "random init (srresnet)",
    "superresolution, discriminator": "random init (srgan-discriminator)",
    "synthetic": "random init (alexnet)",
    "mae": VIT,
    "MAE, half an hour": VIT,
    "MAE, an hour": VIT,
    "cpc": "random init (resnet18, group norm)",
    "moco": "random init (resnet18, split norm)",
    "squeezenet1_0, squeezenet1_0_imagenet.safetensors": "random init (squeezenet1_0)",
}
"""Row of a transfer report -> the row with random weights of the same network. All other rows have ``RESNET18``."""

COLUMNS = {
    "caltech101: kNN": "Caltech-101 kNN",
    "caltech101: linear": "linear",
    "caltech101: 1 % of labels": "1 % of labels",
    "caltech101: 10 % of labels": "10 % of labels",
    "segmentation camvid: frozen mIoU": "CamVid frozen mIoU",
    "geometry rgbd_kitchen: frozen depth within 25 %": "kitchen depth, 25 %",
    "geometry rgbd_kitchen: frozen normals within 22.5°": "kitchen normals, 22.5°",
    "what is in scenes: linear": "objects, linear",
    "segmentation scenes: frozen mIoU": "segments, mIoU",
    "geometry scenes: frozen depth within 25 %": "depth within 25 %",
    "geometry scenes: frozen normals within 22.5°": "normals within 22.5°",
    "tinyimagenet: kNN": "Tiny-ImageNet kNN",
    "tinyimagenet: linear": "linear",
    "tinyimagenet: linear, pooled": "linear, pooled",
    "tinyimagenet: 10 % of labels": "10 % of labels",
    "tinyimagenet: 10 % of labels, pooled": "10 %, pooled",
    "tinyimagenet: fine-tuned": "fine-tuned",
    "cifar10-part: kNN": "CIFAR-10 kNN",
    "cifar10-part: linear": "linear",
    "figure-ground davis: frozen J": "DAVIS J",
}
"""Column of a transfer report -> its name in the tables."""


def figures(report: str) -> dict[str, dict[str, dict[int, float]]]:
    """Reads a transfer report: row -> column -> seed -> figure."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for result in load(f"transfer/{report}")["results"]:
        for name, value in result["figures"].items():
            column = found.setdefault(result["weights"], {}).setdefault(f"{result['task']}: {name}", {})
            column[result["seed"]] = value
    return found


def with_gain(values: Mapping[int, float], random: Mapping[int, float]) -> str:
    """Mean and standard deviation over seeds in percent, and the gain over random weights: "61.0 ± 0.4 (+5.2, 3/3)".

    The brackets hold the mean gain, and the number of seeds with a gain out of all. They are left out without random
    weights. values, random: seed -> figure in
    [0,1].
    """
    text = mean_and_deviation(list(values.values()))
    gains = [100 * (values[seed] - random[seed]) for seed in values if seed in random]
    if not gains:
        return text
    return f"{text} ({statistics.fmean(gains):+.1f}, {sum(gain > 0 for gain in gains)}/{len(gains)})"


def transfer_rows(report: str, names: tuple[str, ...] = (), leave_out: tuple[str, ...] = ()) -> Rows:
    """The rows of a transfer report, with random weights and raw pixels last.

    names: which rows; default: all. leave_out: columns that are left out.
    """
    found = figures(report)

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


@dataclass(frozen=True)
class Report:
    """What a transfer report's table says below its rows: the command, and for rows on a method's page, the page that
    has its options. runs: the number of runs, where ``{seeds}`` is that of the report."""

    command: str = "`make transfer` with the options below"
    page: str = "[One budget](../one-budget.md)"
    runs: str = "One pre-training each, {seeds} seeds of transfer"
    machine: str = EPYC


REPORTS = {
    "report": Report(),
    "scenes": Report('`make transfer ARGS="--classification scenes --segmentation scenes --geometry scenes ..."`'),
    "cifar10": Report('`make transfer ARGS="--size 32 --classification cifar10-part ..."`'),
    "figure-ground": Report('`make transfer ARGS="--figure-ground davis ..."`'),
    "tinyimagenet": Report(
        page="[Equal minutes](../equal-minutes.md)", runs="{seeds} pre-trainings each, transferred with one seed each"
    ),
    "mae-finetuned": Report(
        '`make eval-classification CKPT=runs/equal-minutes/mae-0 DATA=tinyimagenet ARGS="--steps-tuned 2000 '
        '--batch-tuned 32 --lr-tuned 1e-3 --pooled-features 1024 --steps-linear 300 ..."`',
        runs="One pre-training, one seed",
    ),
    "precisions": Report(
        "`make transfer` with the options of [Equal minutes](equal-minutes.md)",
        runs="bfloat16: {seeds} pre-trainings; float32: one, with the seed of the first",
        machine=f"{EPYC}, and one without it, float32",
    ),
    "longer": Report(
        page="[Equal minutes](../equal-minutes.md)",
        runs="Each pre-training transferred with one seed",
        machine=EPYC_FP32,
    ),
}
"""Name of a transfer report -> what its table says below its rows."""


def transfer(report: str, *names: str) -> str:
    """The table of a transfer report: all rows, or the rows ``names`` with random weights of their networks."""
    wanted = tuple(dict.fromkeys([*names, *(RANDOM.get(name, RESNET18) for name in names)]))
    leave_out = ("caltech101: 1 % of labels",)
    about = REPORTS[report]
    command = f"`make transfer` with the options of {about.page}" if names else about.command
    machine = about.machine
    if report == "report" and (not names or "moco" in names):
        machine = XEON if names else f"{EPYC}; MoCo on {XEON}"
    seeds = load(f"transfer/{report}")["settings"]["seeds"]
    runs = f"{about.runs.format(seeds=seeds)}; all in per cent"
    return with_source(transfer_rows(report, wanted, leave_out), "weights", command, machine, runs)


def equal_minutes() -> str:
    """What each method computed in the same minutes."""
    runs = load("equal-minutes")
    rows: Rows = {}
    for name in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == name]
        rows[label(name)] = {
            "steps": f"{statistics.fmean(run['steps'] for run in mine):,.0f}",
            "images seen": f"{statistics.fmean(run['images'] for run in mine):,.0f}",
            "minutes of one core": mean_and_deviation([run["processor seconds"] for run in mine], scale=1 / 60)
            + ("" if mine[0]["minutes"] else f", another machine, {mine[0]['precision']}"),
            "options": f"`{mine[0]['options']}`" if mine[0]["options"] else "",
        }
    return with_source(rows, "method", "`python -m bench.equal_minutes`", EPYC, f"Means of {len(mine)} runs")


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
        '`make eval-segmentation CKPT=... DATA=camvid ARGS="--void 11 --precision bf16 --lr-finetune 3e-4"`',
        XEON,
        "One pre-training each, 3 seeds of transfer; mIoU, %",
    )


def _camvid_cells(file: str, role: str, protocol: str, title: str) -> dict[str, str]:
    """The columns for one protocol, frozen or fine-tuned, in the row of an encoder.

    They are mIoU with the trained weights, mIoU with random weights, and the gain.
    """
    found = load(f"segmentation-camvid-{file}")["miou"][role][protocol]
    learned, random = found["pretrained"], found["random"]
    gains = [100 * (a - b) for a, b in zip(learned, random, strict=True)]
    return {
        title: mean_and_deviation(learned),
        f"{title}, random weights": mean_and_deviation(random),
        f"{title}, gain": f"{statistics.fmean(gains):+.1f} ({sum(gain > 0 for gain in gains)}/{len(gains)})",
    }


def cifar10() -> str:
    """Accuracy on CIFAR-10 after short pre-training runs on it, compared with random weights."""
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
