from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kintsugi.train import checkpoint
from kintsugi.train.config import (
    Preset,
    TrainConfig,
    _flags,
    _one_line,
    from_plain,
    parse_command,
    parse_training,
    to_plain,
    user_errors,
)


@dataclass(frozen=True, kw_only=True)
class ToyConfig(TrainConfig):
    width: int = 8
    rates: tuple[float, ...] = (0.1, 0.2)


def demo() -> ToyConfig:
    return ToyConfig()


def small() -> ToyConfig:
    return ToyConfig(preset="small", width=64, steps=7)


def paper() -> ToyConfig:
    return ToyConfig(preset="paper", width=512)


PRESETS: dict[Preset, object] = {"demo": demo, "small": small, "paper": paper}


def parse(*argv: str) -> ToyConfig:
    return parse_training("toy", PRESETS, argv)  # type: ignore[arg-type]


def test_a_preset_sets_defaults_and_options_override_it():
    assert parse() == demo()
    assert parse("--preset", "small", "--steps", "9") == ToyConfig(preset="small", width=64, steps=9)
    assert parse("--preset=paper").width == 512


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--widht", "3"], "unknown option --widht: did you mean --width?"),
        (["--save_evry", "3"], "unknown option --save_evry: did you mean --save-every?"),
        (["zzzzzzz"], "unknown option zzzzzzz: see --help"),
        (["--steps", "many"], "Error parsing --steps: invalid literal for int() with base 10: 'many'"),
        (["--preset", "huge"], "invalid choice 'huge' for argument '--preset'"),
        (["--steps"], "Missing value for argument '--steps'"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--tyro-print-completion", "--resume"], "options that begin with --tyro- are not supported"),
    ],
)
def test_a_mistake_is_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop, user_errors():
        parse(*argv)
    output = capsys.readouterr()
    assert stop.value.code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert message in output.err


def test_a_mistake_is_one_line_in_an_ascii_terminal_too():
    box = " Title \n ------- \n  the message,  \n  in two lines  \n ------- \n  For help, see --help \n"
    assert _one_line(box) == "the message, in two lines"


ODD = st.sampled_from(
    ["", "-", "--", "nan", "-1", "1e400", "0x1", "9" * 40, "None", "a b", "\n", "é\x00", "--steps", "'"]
)
ARGUMENT = (
    st.sampled_from([*_flags(ToyConfig), "--steps=", "--widht", "--no-resume", "--tyro-print-completion", "-h"]) | ODD
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ARGUMENT | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6))
def test_any_arguments_give_settings_or_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str]
):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    try:
        with user_errors():
            assert isinstance(parse(*argv), ToyConfig)
    except SystemExit as stop:
        output = capsys.readouterr()
        if stop.code == 2:
            assert output.err.startswith("error: ")
            assert output.err.count("\n") == 1
            assert output.out == ""
        else:
            assert not stop.code  # noqa: PT017
            assert {"-h", "--help"} & {word.partition("=")[0] for word in argv}


def test_help_lists_the_options_and_succeeds(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    assert "--adversarial" not in capsys.readouterr().out  # another method's


def test_settings_survive_a_checkpoint(tmp_path: Path):
    config = ToyConfig(out=tmp_path, rates=(0.5,), width=3)
    assert from_plain(ToyConfig, to_plain(config)) == config
    with pytest.raises(ValueError, match=r"does not know: color"):
        from_plain(ToyConfig, {**to_plain(config), "color": 1})


def test_resume_uses_the_saved_settings_and_refuses_others(tmp_path: Path):
    saved = ToyConfig(width=5, steps=10, batch=4)
    content = {"method": "toy", "config": to_plain(saved), "step": 10, "state": {}, "encoders": {}}
    checkpoint.save(tmp_path / "step-00000010.pt", content)
    resumed = parse("--resume", "--out", str(tmp_path), "--steps", "20")
    assert (resumed.width, resumed.batch, resumed.steps, resumed.out) == (5, 4, 20, tmp_path)
    with pytest.raises(ValueError, match=r"--width 5 -> 6"):
        parse("--resume", "--out", str(tmp_path), "--width", "6")


def test_options_at_resume_must_fit_the_runs_settings_not_the_presets(tmp_path: Path):
    @dataclass(frozen=True, kw_only=True)
    class Late(TrainConfig):
        start: int = 8

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.start > self.steps:
                raise ValueError("--start is after the end")

    saved = Late(start=1, steps=4)
    content = {"method": "toy", "config": to_plain(saved), "step": 4, "state": {}, "encoders": {}}
    checkpoint.save(tmp_path / "step-00000004.pt", content)
    argv = ["--resume", "--out", str(tmp_path), "--steps", "6"]
    presets: dict[Preset, object] = {"demo": Late}
    assert parse_training("toy", presets, argv).steps == 6  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="after the end"):
        parse_training("toy", presets, ["--steps", "6"])  # type: ignore[arg-type]


def test_resume_without_a_run_gives_a_hint(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no checkpoint at .*train one"):
        parse("--resume", "--runs", str(tmp_path / "none"))


def test_required_fields_of_a_plain_command_are_named():
    @dataclass(frozen=True)
    class Command:
        ckpt: Path

    with pytest.raises(ValueError, match="ckpt"):
        parse_command(Command, [])
