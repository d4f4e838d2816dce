"""What accelerate was told about training, typed or by its configuration file."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from bigtrain.cluster import launcher_flags
from bigtrain.cluster.launcher_flags import flags_of, refuse_contradictions
from bigtrain.errors import UserError


@pytest.fixture(autouse=True)
def no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for setting in launcher_flags._SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))


def launched(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str], *flags: str) -> None:
    """As a process that `accelerate launch FLAGS` started."""
    words = ["python", "/bin/accelerate", "launch", *flags, "launch/train.py", "recipe.yaml", "--plan"]
    monkeypatch.setattr(launcher_flags, "typed_flags", lambda: flags_of(words))
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def write_default(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "accelerate" / "default_config.yaml"
    path.parent.mkdir()
    path.write_text(text)
    return path


def test_the_flags_of_the_launcher_are_those_before_the_script() -> None:
    typed = ["--multi_gpu", "--num-processes", "2", "--mixed_precision=bf16"]
    expected = {"--multi_gpu": "true", "--num_processes": "2", "--mixed_precision": "bf16"}
    for start in (["python", "-m", "accelerate.commands.launch"], ["python", "/bin/accelerate", "launch"]):
        assert flags_of([*start, *typed, "launch/train.py", "r.yaml", "--plan"]) == expected
    assert flags_of(["bash", "accelerate.sh"]) == {}
    assert flags_of(["torchrun", "--nproc-per-node", "2", "launch/train.py"]) == {}


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        (["--gradient_accumulation_steps", "4"], "train.accumulate sets the microbatches"),
        (["--gradient_clipping=1.0"], "each optimizer's clip_norm"),
        (["--zero_stage", "3"], "engine.strategy"),
        (["--fsdp_sharding_strategy", "1"], "engine.strategy"),
    ],
)
def test_a_flag_that_accelerate_drops_is_refused(
    flags: list[str], remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, {}, *flags)
    with pytest.raises(
        UserError, match=rf"^the launcher's {flags[0].partition('=')[0]}.* contradicts the recipe"
    ) as no:
        refuse_contradictions("fp32", 1)
    assert remedy in str(no.value)


def test_what_says_the_same_as_the_recipe_or_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(
        monkeypatch,
        {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "NO"},
        *("--gradient_accumulation_steps", "4", "--num_processes", "2", "--zero_stage", "auto"),
    )
    refuse_contradictions("bf16", 4)
    with pytest.raises(UserError, match="--gradient_accumulation_steps 4"):
        refuse_contradictions("bf16", 2)


def test_a_command_that_does_not_train_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, {"ACCELERATE_MIXED_PRECISION": "bf16"})
    with pytest.raises(UserError, match="contradicts this command, which takes none of training's settings"):
        refuse_contradictions("no", None)


def test_the_file_is_named_where_nothing_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_default(tmp_path, "distributed_type: DEEPSPEED\nmixed_precision: fp16\n")
    launched(monkeypatch, {"ACCELERATE_MIXED_PRECISION": "fp16"})
    with pytest.raises(UserError) as refusal:
        refuse_contradictions("fp32", 1)
    assert str(refusal.value).startswith(
        f"{path}, which accelerate reads where no --config_file is given, says mixed_precision: fp16: it contradicts"
    )
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="says distributed_type: DEEPSPEED: it contradicts"):
        refuse_contradictions("fp32", 1)


def test_the_file_is_not_blamed_for_what_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_default(tmp_path, "mixed_precision: fp16\n")
    launched(monkeypatch, {"ACCELERATE_MIXED_PRECISION": "fp16"}, "--mixed_precision", "fp16")
    with pytest.raises(UserError, match=r"^the launcher's --mixed_precision fp16 contradicts"):
        refuse_contradictions("fp32", 1)


def test_a_file_that_was_named_is_the_one_that_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("mixed_precision: bf16\n")
    launched(monkeypatch, {"ACCELERATE_MIXED_PRECISION": "bf16"}, "--config_file", str(own))
    with pytest.raises(UserError, match=rf"^{own}, which accelerate reads, says mixed_precision: bf16"):
        refuse_contradictions("fp32", 1)
