from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kintsugi.nets.backbones import Backbone
from kintsugi.train import checkpoint, shipped


def content(encoder: torch.nn.Module, network: str) -> dict:
    """Of a checkpoint whose network holds the encoder, and of one that has the encoder alone."""
    weights = {f"{network}.encoder.{key}": value for key, value in encoder.state_dict().items()}
    weights |= {f"{network}.last": torch.tensor([1 / 3]), "generator.last": torch.zeros(1)}
    return {
        "method": "mender",
        "step": 7,
        "score": 1.5,
        "config": {"size": 64},
        "state": {"weights": weights, "optimizers": {"generator": {}}},
        "encoders": {"generator": {"spec": encoder.spec.plain(), "state": encoder.state_dict()}},
    }


@pytest.mark.parametrize("network", ["average.module", "colorizer", "other"])
def test_a_file_reads_like_the_checkpoint_in_half_precision(network: str, tmp_path: Path):
    torch.manual_seed(0)
    encoder = Backbone("alexnet").build()
    shipped.write(content(encoder, network), tmp_path / "net.safetensors")
    file, read = checkpoint.read(tmp_path / "net.safetensors", "mender")
    assert (read["method"], read["step"], read["config"]) == ("mender", 7, {"size": 64})
    loaded = checkpoint.load_encoder(file)
    for key, value in encoder.state_dict().items():
        expected = value.half().float() if value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[key], expected)
        assert loaded.state_dict()[key].dtype == value.dtype
    last = checkpoint.weights_of(read, network).get("last")
    assert last is None if network == "other" else last == torch.tensor(1 / 3).half().float()
    assert "generator.last" not in read["state"]["weights"]
    size = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    assert file.stat().st_size < 0.55 * size
    assert not list(tmp_path.glob(".*.part"))


def test_other_files_are_refused_with_one_line(tmp_path: Path):
    file = tmp_path / "net.safetensors"
    for make in (
        lambda: file.write_bytes(b"nothing"),
        lambda: save_file({"a": torch.zeros(1)}, file),
        lambda: save_file({"a": torch.zeros(1)}, file, {"kintsugi": "no json"}),
        lambda: save_file({"a": torch.zeros(1)}, file, {"kintsugi": json.dumps({"method": "mender"})}),
    ):
        make()
        with pytest.raises(ValueError, match="does not hold this project's weights") as error:
            checkpoint.read(file)
        assert "\n" not in str(error.value)


def test_weights_of_another_method_are_refused(tmp_path: Path):
    shipped.write(content(Backbone("alexnet").build(), "average.module"), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="is a checkpoint of mender, not of superresolution"):
        checkpoint.read(tmp_path / "net.safetensors", "superresolution")


def test_ones_own_run_comes_before_the_weights_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "weights")
    with pytest.raises(ValueError, match="no checkpoint at runs/mender/latest"):
        checkpoint.chosen(None, "mender", "inpainting")
    (tmp_path / "weights").mkdir()
    made = content(Backbone("alexnet").build(), "average.module")
    shipped.write(made, tmp_path / "weights/mender.safetensors")
    assert checkpoint.chosen(None, "mender", "inpainting").name == "mender.safetensors"
    assert "mender.safetensors, which ships with Kintsugi" in capsys.readouterr().err
    run = tmp_path / "runs/inpainting/a"
    checkpoint.save(run / "step-00000001.pt", made)
    (tmp_path / "runs/inpainting/latest").write_text("a")
    assert checkpoint.chosen(None, "mender", "inpainting").resolve() == run / "step-00000001.pt"
    assert checkpoint.chosen(tmp_path / "weights/mender.safetensors", "mender").suffix == ".safetensors"


@pytest.mark.parametrize("file", sorted(shipped.FOLDER.glob("*.safetensors")), ids=lambda file: file.stem)
def test_the_files_that_ship_are_small_and_have_a_card(file: Path):
    assert file.stat().st_size < 12e6
    assert checkpoint.load_encoder(file)(torch.rand(1, 3, 64, 64))
    config = checkpoint.read(file)[1]["config"]
    assert not {"data", "init", "out"} & config.keys()  # they name places on the machine of the training
    card = file.with_suffix(".md").read_text()
    assert all(word in card for word in ("## Data", "## Training", "## Figures", "## What it does badly"))


def test_together_they_are_below_40_mb():
    assert sum(file.stat().st_size for file in shipped.FOLDER.glob("*.safetensors")) < 40e6
