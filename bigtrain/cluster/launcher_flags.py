"""What a launcher was told about training, which the recipe decides: refused unless both say the same.

accelerate hands some of its flags on in the environment, whether they were typed or stand in its configuration file. Others it
drops without a word (--gradient_accumulation_steps without --use_deepspeed); they are read from its command line.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml

from bigtrain.errors import UserError


class _Setting(NamedTuple):
    flag: str
    variable: str
    in_file: tuple[str, ...]
    """Where it stands in accelerate's configuration file."""
    value_in_file: str | None
    """Its value there that turns it on; None: the value itself."""
    decided_by: str
    """What decides it here."""
    without: str
    """What to launch with instead."""
    harmless: frozenset[str] = frozenset()
    """Values that ask for nothing."""


_OFF = frozenset({"false", "no", "none", "0", "auto"})
_STRATEGY = "engine.strategy sets the strategy (ddp, zero1, zero2 or zero3)"
_SETTINGS = (
    _Setting(
        "--mixed_precision", "ACCELERATE_MIXED_PRECISION", ("mixed_precision",), None,
        "train.precision sets it (fp32, tf32 or bf16)", "--mixed_precision no", _OFF,
    ),
    _Setting(
        "--use_deepspeed", "ACCELERATE_USE_DEEPSPEED", ("distributed_type",), "DEEPSPEED", _STRATEGY,
        "--multi_gpu, without --use_deepspeed", _OFF,
    ),
    _Setting(
        "--use_fsdp", "ACCELERATE_USE_FSDP", ("distributed_type",), "FSDP", _STRATEGY, "--multi_gpu, without --use_fsdp", _OFF
    ),
    _Setting(
        "--use_megatron_lm", "ACCELERATE_USE_MEGATRON_LM", ("distributed_type",), "MEGATRON_LM", _STRATEGY,
        "--multi_gpu, without --use_megatron_lm", _OFF,
    ),
    _Setting(
        "--dynamo_backend", "ACCELERATE_DYNAMO_BACKEND", ("dynamo_config", "dynamo_backend"), None,
        "engine.compile sets compilation", "--dynamo_backend no", _OFF,
    ),
    _Setting(
        "--gradient_accumulation_steps", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
        ("deepspeed_config", "gradient_accumulation_steps"), None,
        "train.accumulate sets the microbatches of a step", "no --gradient_accumulation_steps", _OFF | {"1"},
    ),
    _Setting(
        "--gradient_clipping", "ACCELERATE_GRADIENT_CLIPPING", ("deepspeed_config", "gradient_clipping"), None,
        "each optimizer's clip_norm clips gradients", "no --gradient_clipping", _OFF,
    ),
    _Setting(
        "--zero_stage", "ACCELERATE_DEEPSPEED_ZERO_STAGE", ("deepspeed_config", "zero_stage"), None, _STRATEGY,
        "no --zero_stage", _OFF,
    ),
    _Setting(
        "--offload_optimizer_device", "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE",
        ("deepspeed_config", "offload_optimizer_device"), None,
        "engine.offload_optimizer keeps an optimizer's state in host memory", "no --offload_optimizer_device", _OFF,
    ),
    _Setting(
        "--offload_param_device", "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE",
        ("deepspeed_config", "offload_param_device"), None,
        "engine.strategy and engine.offload_optimizer say what is where", "no --offload_param_device", _OFF,
    ),
    _Setting(
        "--deepspeed_config_file", "ACCELERATE_DEEPSPEED_CONFIG_FILE", ("deepspeed_config", "deepspeed_config_file"), None,
        _STRATEGY, "no --deepspeed_config_file", _OFF,
    ),
)  # fmt: skip
_ENGINES = ("--fsdp_", "--megatron_lm_", "--fp8_", "--parallelism_config_")
"""Flags of other engines than ours, which accelerate drops where the engine itself is not asked for."""


def refuse_contradictions(precision: str, accumulate: int | None) -> None:
    """Raises UserError for what the launcher was told and this command decides otherwise.

    `precision`: the recipe's, "no" for a command that does not train; `accumulate`: its microbatches, None for such a command.
    """
    typed = typed_flags()
    trains = accumulate is not None
    for setting in _SETTINGS:
        value = os.environ.get(setting.variable, typed.get(setting.flag))
        agreed = {"--mixed_precision": precision, "--gradient_accumulation_steps": str(accumulate)}.get(setting.flag)
        if value is None or value.lower() in setting.harmless or value == agreed:
            continue
        why = (
            f"the recipe, where {setting.decided_by}"
            if trains
            else "this command, which takes none of training's settings"
        )
        source, remedy = _source(setting, value, typed)
        raise UserError(f"{source} contradicts {why}; {remedy}")
    for flag in typed:
        if flag.startswith(_ENGINES):
            raise UserError(f"the launcher's {flag} contradicts the recipe, where {_STRATEGY}; launch without {flag}")


def _source(setting: _Setting, value: str, typed: Mapping[str, str]) -> tuple[str, str]:
    """Where the value comes from, and what to do about it."""
    shown = setting.flag if setting.flag.startswith("--use_") else f"{setting.flag} {value.lower()}"
    path = configuration_file(typed)
    if setting.flag not in typed and path is not None:
        found = _in_file(path, setting, value)
        if found is not None:
            return (
                f"{path}, which accelerate reads" + (" where no --config_file is given" if "--config_file" not in typed else "")
                + f", says {found}: it",
                f"change that, or launch with {setting.without}",
            )  # fmt: skip
    return f"the launcher's {shown}", f"launch with {setting.without}"


def _in_file(path: Path, setting: _Setting, value: str) -> str | None:
    """The entry of the file that asks for this value, as it stands there; None if none does."""
    try:
        entry: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    for key in setting.in_file:
        entry = entry.get(key) if isinstance(entry, dict) else None
    wanted = setting.value_in_file or value
    return (
        f"{'.'.join(setting.in_file)}: {entry}" if entry is not None and str(entry).lower() == wanted.lower() else None
    )


def configuration_file(typed: Mapping[str, str]) -> Path | None:
    """The file that accelerate took its defaults from: the one that was named, or the user's own."""
    if "--config_file" in typed:
        return Path(typed["--config_file"])
    cache = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    folder = Path(cache).expanduser() / "accelerate"
    return next(
        (path for path in (folder / "default_config.json", folder / "default_config.yaml") if path.is_file()), None
    )


def typed_flags() -> dict[str, str]:
    """The flags with which a user started the accelerate that started this process, with their values ("true" without one);
    empty if the parent process is not one."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return {}
    return flags_of(words)


def flags_of(words: Sequence[str]) -> dict[str, str]:
    """The flags of `accelerate launch` among the words of a command; those of the script that it starts are not."""
    names = [Path(word).name for word in words]
    begin = next(
        (
            number + 1
            for number, (before, name) in enumerate(zip(["", *names], names, strict=False))
            if name in ("accelerate.commands.launch", "accelerate-launch") or (before, name) == ("accelerate", "launch")
        ),
        None,
    )
    if begin is None:
        return {}
    flags: dict[str, str] = {}
    flag = None
    for word in words[begin:]:
        if word.startswith("-"):
            name, _, value = word.partition("=")
            flag = f"--{name.lstrip('-').replace('-', '_')}"
            flags[flag] = value or "true"
        elif flag is not None and not word.endswith(".py"):
            flags[flag], flag = word, None
        else:
            break  # the script
    return flags
