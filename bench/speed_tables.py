"""Tables of speed, and of how closely the library's own code matches that of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.printing import Rows, label, load, with_source


def machine_of(found: Mapping[str, Any]) -> str:
    """The machine, precision and version of PyTorch of a result, in one line."""
    machine = found["machine"]
    precision = found["settings"].get("precision", "fp32")
    return f"{machine['cores']} cores of an {machine['processor']}, {precision}, PyTorch {machine['torch']}"


def loaders() -> str:
    """Speed of making two augmented views of each image, compared with other libraries."""
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
    """Time of whole training steps, compared with the time of the networks alone."""
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


def precision() -> str:
    """Time of a training step in float32 and in bfloat16."""
    found = load("precision")
    rows: Rows = {
        label(name): {
            "fp32, ms": f"{of['fp32']:.0f}",
            "bf16, ms": f"{of['bf16']:.0f}",
            "times as fast": f"{of['bf16, times as fast']:.2f}",
        }
        for name, of in found["step, ms"].items()
    }
    machine = found["machine"]
    where = f"{machine['threads']} of {machine['cores']} cores of an {machine['processor']}, PyTorch {machine['torch']}"
    count = f"Median of {found['settings']['rounds']} rounds in turns, one run"
    return with_source(rows, f"batch {found['settings']['batch']}", f"`{found['command']}`", where, count)


def overlap() -> str:
    """When messages between ranks are under way: during a backward pass, or after it."""
    found = load("overlap")
    rows: Rows = {
        f"averaged {way}": {name: f"{value:.0f}" for name, value in of.items()} for way, of in found["averaged"].items()
    }
    return with_source(
        rows,
        "gradients",
        f"`{found['command']}`",
        machine_of(found),
        f"Median of {found['settings']['rounds']} steps, rank 0, one run",
    )


def kernels() -> str:
    """Kernels and waits of a step of every method on a pretended GPU, before and after they were made fewer."""
    found = load("kernels")
    rows: Rows = {
        label(name): {
            "waits, before": f"{before['waits']}",
            "waits": f"{found['after'][name]['waits']}",
            "kernels, before": f"{before['kernels']}",
            "kernels": f"{found['after'][name]['kernels']}",
        }
        for name, before in found["before"].items()
    }
    machine = f"counted, so the same on every machine; PyTorch {found['settings']['torch']}"
    return with_source(rows, "step, bf16", "`python -m bench.kernels --name after`", machine, "One run each")


def masked_encoder() -> str:
    """Time of a step of MAE's encoder on visible patches, compared with all patches."""
    found = load("masked-encoder")
    rows: Rows = {}
    for network, of in found["encoder, ms"].items():
        for job, milliseconds in of.items():
            if job == "all patches" or job.endswith("masked"):
                gain = of.get(f"{job}, times as fast", 1.0)
                masked = 0.0 if job == "all patches" else float(job.removesuffix(" masked"))
                rows[f"{network}, {job}"] = {
                    "ms": f"{milliseconds:.0f}",
                    "times as fast": f"{gain:.2f}",
                    "1 / (1 - masked)": f"{1 / (1 - masked):.2f}",
                }
    return with_source(
        rows,
        "encoder, forward and backward",
        f"`{found['command']}`",
        machine_of(found).replace("2 cores", "One of 2 cores"),
        f"Median of {found['settings']['rounds']} rounds in turns, one run",
    )


def transfer_row() -> str:
    """Time of a row of the transfer table, before and after linear probes by inner products."""
    found = load("transfer-row")
    before, now, three = (found[name] for name in ("before", "now", "now, 3 seeds"))

    def cells(*seconds: float) -> dict[str, str]:
        old, new, of_three = seconds
        return {
            "before, s": f"{old:.1f}",
            "now, s": f"{new:.1f}",
            "times as fast": f"{old / new:.1f}",
            "now, 3 seeds, s": f"{of_three:.1f}",
        }

    rows = {
        f"{task}, {protocol}": cells(*(of["seconds"][task][protocol] for of in (before, now, three)))
        for task, protocols in now["seconds"].items()
        for protocol in protocols
        if not protocol.endswith("shot")
    }
    rows["all"] = cells(*(of["all seconds"] for of in (before, now, three)))
    machine = now["machine"]
    where = f"{machine['threads']} of {machine['cores']} cores of an {machine['processor']}, bfloat16"
    return with_source(
        rows, "processor time of one seed", "`python -m bench.transfer_row --seeds 1 ...`", where, "One run each"
    )


def growth() -> str:
    """How speed changes with threads, ranks, batch sizes and image sizes, on two machines."""
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
    """SimCLR's and BYOL's losses compared with lightly's: values, gradients and time."""
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


def hha() -> str:
    """Our HHA compared with a picture from the authors' program, and its speed."""
    found = load("hha")
    rows = {
        plane: {"equal pixels, %": f"{100 * of['equal']:.1f}", "largest difference, levels": f"{of['largest']}"}
        for plane, of in found["against the authors' picture, levels"].items()
    }
    times = ", ".join(
        f"{ms:.0f} ms in batches of {n}" for n, ms in found["ms per frame by batch, median of 10"].items()
    )
    machine = f"two idle cores, {found['machine']}, PyTorch {found['torch']}"
    return with_source(rows, "plane", "`python -m bench.hha_rate`", machine, f"A frame of 640x480 takes {times}")
