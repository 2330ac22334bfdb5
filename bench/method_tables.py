"""Tables of the methods' figures on held-out images, compared with baselines that need no learning."""

from __future__ import annotations

from bench.printing import EPYC, EPYC_FP32, XEON, XEON_FP32, columns_of, label, load, mean_and_deviation, with_source


def demos() -> str:
    """The main figure of each reconstruction method's demo on held-out scenes, and that of its baseline."""
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
        "split-brain": ("PSNR of both planes, dB", split["splitbrain"]["psnr"], split["mean color"]["psnr"]),
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
    """How often, in percent, the nearest neighbor of a view is the other view of the same held-out scene."""
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


def found(method: str) -> str:
    """A method's demo: how often, in percent, the nearest neighbor of a view is the other view of the same scene."""
    columns = {
        "same_image": ("found, %", ".1f"),
        "same_image, strong views": ("found, strong views, %", ".1f"),
        "rank": ("effective rank", ".0f"),
    }
    return with_source(
        columns_of(load(f"demo-{method}"), columns),
        "demo, held-out scenes",
        f"`make train-{method}`",
        EPYC_FP32,
        "One run",
    )


def inpainting() -> str:
    """PSNR / SSIM / L1 / L2 in the hole, for the context encoder and for fills without learning."""
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
        '`make eval-inpainting CKPT=... DATA=... ARGS="--split all"`',
        "scenes: two cores of a Xeon, float32. Photos: one core of a Xeon with AMX, bfloat16",
        "One run each",
    )


def photo_holes() -> str:
    """LPIPS and PSNR of holes in photos: fills without learning, networks, and each followed by patches."""
    return _photo_holes("photo-holes", "BSDS500", "every 7th photo by its name")


def photo_holes_caltech() -> str:
    """The same for smaller photos, of single things."""
    return _photo_holes("photo-holes-caltech101", "Caltech-101 test", "every 60th photo by its name")


def _photo_holes(name: str, photos: str, chosen: str) -> str:
    result = load(name)
    rows: dict[str, dict[str, str]] = {}
    for kind, fills in result["holes"].items():
        for fill, of in fills.items():
            lpips = f"{of['lpips']:.3f} ± {of['lpips_deviation']:.3f}"
            rows.setdefault(fill, {})[kind] = f"{lpips} / {of['psnr']:.2f} ± {of['psnr_deviation']:.2f}"
    return with_source(
        rows,
        f"{result['photos']} photos of {photos}, {result['size']} px",
        f"`python -m bench.photo_holes --data ... --lpips alexnet.safetensors --ckpt ...`, {chosen}",
        "two cores of an AMD EPYC",
        "One run; ± is the standard deviation over photos",
    )


def colorization() -> str:
    """Colorization of held-out photos, compared with its baselines."""
    chroma_truth = load("colorization-caltech101")["gray"]["chroma_truth"]
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


def colorizer() -> str:
    """The colorizer that ships, on photos at native resolution, compared with gray and the mean color."""
    result, rows = load("colorizer"), {}
    names = {"weights/colorizer.safetensors": "colorizer", "weights/colorizer.safetensors, 5 hints": "... with 5 hints"}
    for photos, of in result["sets"].items():
        truth = of["rows"]["gray"]["chroma_truth"]
        for way, row in of["rows"].items():
            rows[f"{photos}: {names.get(way, way)}"] = {
                "accuracy of ab, %": f"{row['auc']:.1f}",
                "balanced, %": f"{row['auc_rebalanced']:.1f}",
                "PSNR, dB": f"{row['psnr']:.1f} ± {row['psnr_deviation']:.1f}",
                "LPIPS": f"{row['lpips']:.3f} ± {row['lpips_deviation']:.3f}",
                "mean chroma (truth)": f"{row['chroma']:.1f} ({truth:.1f})",
            }
    return with_source(
        rows, "photos: colored by", result["command"], result["machine"], "One run; ± is the deviation over photos"
    )


def set5() -> str:
    """Super-resolution of Set5 by the weights that ship, compared with bicubic enlargement."""
    columns = {
        "psnr": ("PSNR, dB", ".2f"),
        "ssim": ("SSIM", ".3f"),
        "lpips": ("LPIPS", ".3f"),
        "grain": ("grain", ".2f"),
        "VGG19 relu3_4": ("distance in VGG19 relu3_4", ".3f"),
    }
    command = '`make eval-superresolution DATA=Set5/HR ARGS="--ckpt weights/srresnet.safetensors ... --ensemble"`'
    return with_source(
        columns_of(load("superresolution-set5"), columns),
        "Set5, x4",
        command,
        "two cores of an AMD EPYC",
        "One training each",
    )


def masked(method: str) -> str:
    """Masked squares of held-out scenes after the demo of MAE or SparK, compared with fills without learning."""
    columns = {"psnr": ("PSNR, dB", ".2f"), "ssim": ("SSIM", ".3f"), "l1": ("L1, %", ".1f"), "l2": ("L2, %", ".2f")}
    return with_source(
        columns_of(load(f"demo-{method}"), columns),
        "masked squares of 256 held-out scenes, 64 px",
        f"`make train-{method}`",
        {"mae": EPYC_FP32}.get(method, EPYC),
        "One run",
    )


def distill() -> str:
    """The demo of distillation: held-out predictions of the teacher's features, and the features themselves."""
    columns = {
        "cosine": ("cosine, map", ".2f"),
        "cosine_vector": ("cosine, vector", ".2f"),
        "same_image": ("same image, %", ".1f"),
        "rank": ("effective rank", ".0f"),
    }
    return with_source(
        columns_of(load("demo-distill"), columns),
        "256 held-out scenes, 64 px",
        "`make train-distill TEACHER=alexnet=alexnet_features_imagenet.safetensors`",
        EPYC,
        "One run",
    )


def splitbrain() -> str:
    """The split-brain autoencoder on held-out photos, compared with its baselines."""
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
    """The split-brain autoencoder with depth on held-out frames, compared with its baselines."""
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


def synthetic() -> str:
    """Depth, normals and contours on held-out scenes, compared with the mean of the scenes."""
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
    """Synthetic to real with and without its discriminator: mean and standard deviation over seeds."""
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
