"""The options of a Slurm job: a site's file, and the flags of launch/submit.py that override it."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from bigtrain.cluster.watchdog import START_S
from bigtrain.errors import UserError
from bigtrain.options import Options
from bigtrain.untrusted import looked_for
from bigtrain.wrong_values import rule, what_is_wrong

DIRECTIVES = (
    "begin", "comment", "constraint", "cpus-per-gpu", "dependency", "exclude", "exclusive", "gres", "hint", "licenses",
    "mail-type", "mail-user", "mem-per-cpu", "mem-per-gpu", "nice", "nodelist", "reservation", "switches", "tmp", "wckey",
)  # fmt: skip
"""Other sbatch directives that a user may give: none of them changes what the script relies on."""

NOT_OF_SRUN = (
    "cpus-per-task", "jobid", "kill-on-bad-exit", "label", "multi-prog", "nodes", "ntasks", "ntasks-per-node", "pty",
)  # fmt: skip
"""Options of srun that the script sets, or that would change how many processes it starts."""

LAUNCHER_GRACE_S = 30
"""A launcher's default time between SIGTERM and SIGKILL of its ranks; a checkpoint may take longer."""


def one_line(value: Any) -> str:
    """The value, if it is printable text on one line; raises ValueError for anything else.

    `#SBATCH` directives are lines: text after a newline would be another directive, or a command.
    """
    if not isinstance(value, str):
        raise ValueError("must be text; in a YAML file, put it in quotes (12:00:00 without them is a number)")
    if not value or not value.isprintable():
        raise ValueError("must be printable text on one line, without control characters")
    return value


def _one_line_or_none(value: Any) -> str:
    return "" if value == "" else one_line(value)


Text = Annotated[str, BeforeValidator(one_line)]
TextOrNone = Annotated[str, BeforeValidator(_one_line_or_none)]

_SLURM_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")
_UNITS_TIME = re.compile(r"(?:(\d+) ?d)? ?(?:(\d+) ?h)? ?(?:(\d+) ?m(?:in)?)?")


def _time(value: Any) -> str:
    """A time limit in Slurm's format, or as 1d12h30m, which becomes that. Raises ValueError."""
    text = one_line(value)
    parts = _UNITS_TIME.fullmatch(text.lower())
    if parts and any(parts.groups()):
        days, hours, minutes = (int(part or 0) for part in parts.groups())
        return (
            f"{days}-{hours:02}:{minutes:02}:00"
            if hours < 24 and minutes < 60
            else str((days * 24 + hours) * 60 + minutes)
        )
    if seconds_of(text) is None and text.lower() not in ("infinite", "unlimited"):
        raise ValueError("must be a time such as 12:00:00, 2-00:00:00, 1d12h, or a number of minutes")
    return text


def seconds_of(time: str) -> int | None:
    """Seconds of a time limit in Slurm's format: minutes, minutes:seconds, h:m:s, days-h, days-h:m or days-h:m:s."""
    found = _SLURM_TIME.fullmatch(time)
    if found is None:
        return None
    numbers = [int(found[name]) for name in ("first", "second", "third") if found[name] is not None]
    units = (3600, 60, 1) if found["days"] is not None or len(numbers) == 3 else (60, 1)
    return int(found["days"] or 0) * 86400 + sum(n * unit for n, unit in zip(numbers, units, strict=False))


def _gpus(value: Any) -> Any:
    """A number, or TYPE:NUMBER. Raises ValueError."""
    if isinstance(value, int) and value >= 0:
        return value
    text = str(value)
    if text.isdecimal():
        return int(text)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*:[1-9]\d*", text):
        raise ValueError("must be a whole number, or TYPE:NUMBER such as a100:4")
    return text


FLAGS_OF_PAIRS = {"directives": "--directive", "srun": "--srun"}
"""The options that are mappings, and the flags that give one pair NAME=VALUE of each."""


class SlurmOptions(Options):
    """What a job requests from Slurm. A site's YAML file gives defaults under these names; flags override them."""

    of_words = True

    nodes: int = Field(default=1, gt=0)
    """Nodes of the job."""
    gpus_per_node: Annotated[int | str, BeforeValidator(_gpus)]
    """GPUs of each node, with one process each: 4, or of a type a100:4; 0: processes_per_node processes on the CPU."""
    processes_per_node: int | None = Field(default=None, gt=0)
    """Processes on each node of a job without GPUs; null: 1. With GPUs there is one per GPU."""
    partition: Text | None = None
    """Partition (queue); null: the site's default."""
    time: Annotated[str, BeforeValidator(_time)] | None = None
    """Time limit from each start of the job: 12:00:00, 2-00:00:00 (days-hours), 1d12h, or minutes; null: the partition's."""
    account: Text | None = None
    """Account that is charged."""
    qos: Text | None = None
    """Quality of service."""
    cpus_per_task: int | None = Field(default=None, gt=0)
    """Cores of each node, for all of its processes and their data workers together; null: the site's default, which is often
    one core."""
    mem: Text | None = None
    """Memory of each node, such as 400G."""
    signal_before_s: int = Field(default=300, ge=1, le=65535)
    """Seconds before the time limit at which training is told to save and stop; longer than start, a step and a save take."""
    max_restarts: int = Field(default=100, ge=0)
    """Restarts, for any reason, after which the job is not queued again."""
    setup: Text | None = None
    """Shell file that the job sources at each start (module load ..., export NCCL_...); it must not call srun. If it exports
    MASTER_ADDR or MASTER_PORT the nodes connect there, and otherwise to the first node."""
    container_image: Text | None = None
    """Image that the processes run in by pyxis, as srun's --container-image takes it: a file .sqsh, or OWNER/NAME:TAG of a
    registry."""
    apptainer_image: Text | None = None
    """The same by Apptainer or Singularity: a file .sif, or docker://OWNER/NAME:TAG."""
    container_mounts: Text | None = None
    """Folders that the container sees besides the working directory, this repository, and the folders of the recipe and of the
    run: PATH or PATH:INSIDE, separated by commas. Data and caches must be among them."""
    container_python: Text = "python"
    """The Python in the container that has the packages which bigtrain needs; bigtrain itself is this repository's."""
    srun: Mapping[str, TextOrNone] = {}
    """Further options of srun, such as cpu-bind: cores, or without a value exclusive: ""."""
    directives: Mapping[str, TextOrNone] = {}
    """Other sbatch directives from an allow-list, such as constraint: a100, or without a value exclusive: ""."""

    @field_validator("setup")
    @classmethod
    def _is_a_file(cls, setup: str | None) -> str | None:
        path = Path(setup).expanduser().absolute() if setup is not None else None
        if path is not None and not path.is_file():
            raise ValueError("is not a file")
        return str(path) if path is not None else None

    @field_validator("directives")
    @classmethod
    def _allowed(cls, directives: Mapping[str, str]) -> Mapping[str, str]:
        for name in directives:
            if name not in DIRECTIVES:
                raise ValueError(f"{name!r} is not among those that may be given: {', '.join(DIRECTIVES)}")
        return directives

    @field_validator("srun")
    @classmethod
    def _leaves_the_script_working(cls, srun: Mapping[str, str]) -> Mapping[str, str]:
        for name in srun:
            if name in NOT_OF_SRUN or not re.fullmatch("[a-z][a-z0-9-]*", name):
                raise ValueError(
                    f"{name!r} cannot be given: the job script sets it, or depends on it, or it is no option"
                )
        return srun

    @model_validator(mode="after")
    def _times_and_containers_agree(self) -> "SlurmOptions":
        limit = seconds_of(self.time) if self.time is not None else None
        if limit and limit <= self.signal_before_s:
            raise ValueError(
                f"--time: {self.time} is {limit} seconds, and training is told to stop {self.signal_before_s} before its end; "
                "give more time, or less with --signal-before-s"
            )
        if self.container_image is not None and self.apptainer_image is not None:
            raise ValueError("--container-image is pyxis's, --apptainer-image Apptainer's; give one of them")
        if self.container_mounts is not None and not self.is_contained:
            raise ValueError("--container-mounts: there is no container; give --container-image or --apptainer-image")
        return self

    @model_validator(mode="after")
    def _one_process_a_gpu(self) -> "SlurmOptions":
        if self.gpus and self.processes_per_node not in (None, self.gpus):
            raise ValueError(
                f"processes_per_node: is for jobs without GPUs; with gpus_per_node: {self.gpus_per_node} there is one "
                "process a GPU; leave it out"
            )
        return self

    @property
    def grace_s(self) -> int:
        """Seconds between SIGTERM and SIGKILL that the job's launchers give their ranks.

        Long enough for a save, but short enough that a rank which ignores SIGTERM is ended, and named, before Slurm ends the
        job at its time limit; and never longer than the watchdog's longest limit.
        """
        return max(LAUNCHER_GRACE_S, min(self.signal_before_s - LAUNCHER_GRACE_S, int(START_S)))

    @property
    def gpus(self) -> int:
        """GPUs of each node, of whatever type."""
        return int(str(self.gpus_per_node).rpartition(":")[2])

    @property
    def is_contained(self) -> bool:
        return self.container_image is not None or self.apptainer_image is not None

    @property
    def ranks_per_node(self) -> int:
        return self.gpus or self.processes_per_node or 1

    @property
    def ranks(self) -> int:
        return self.nodes * self.ranks_per_node


def site_file(given: Path | None) -> Path | None:
    """The site's defaults: the file given, else $BIGTRAIN_SITE, else ~/.config/bigtrain/site.yaml if it is there."""
    if given is not None:
        return given
    if os.environ.get("BIGTRAIN_SITE"):
        return Path(os.environ["BIGTRAIN_SITE"])
    default = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "bigtrain" / "site.yaml"
    return default if default.is_file() else None


def read_options(site: Path | None, flags: Mapping[str, Any]) -> SlurmOptions:
    """Options from a site's file and from the flags that were given (by field name), which override it.

    Directives and options of srun of both are merged. Raises UserError that names the file or the flag.
    """
    content = _read_site(site) if site is not None else {}
    values = {**content, **flags}
    for key in FLAGS_OF_PAIRS:
        if isinstance(content.get(key), dict):
            values[key] = {**content[key], **flags.get(key, {})}
    try:
        return SlurmOptions.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], site, flags)) from None


def _read_site(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the site's defaults ({error.strerror}){looked_for(path)}; see --site and $BIGTRAIN_SITE"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a site's file is a mapping, such as `partition: gpu`")
    return content


def _sentence(error: Any, site: Path | None, flags: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"] if part != "[key]"]
    if not location:
        return rule(error)
    key = location[0]
    flag = f"--{key.replace('_', '-')}"
    if error["type"] == "missing":
        return f"{flag} is missing (0: processes on the CPU); give it here, or {key} in a site's file (--site)"
    if error["type"] == "extra_forbidden":
        return f"{site}: {key} is not a key; there are {', '.join(SlurmOptions.model_fields)}"
    flag = FLAGS_OF_PAIRS.get(key, flag)
    if key in FLAGS_OF_PAIRS and location[1:]:
        where = f"{flag} {location[1]}" if location[1] in flags.get(key, {}) else f"{site}: {key}.{location[1]}"
    else:
        where = flag if key in flags else f"{site}: {key}"
    return f"{where}: {what_is_wrong(error)}"
