"""Slurm: the options of a job, its script for sbatch, and the marker file that makes a job requeue itself.

The script is one fixed text after assignments whose values are quoted word by word, so a user's text is never run as shell.
A job trains until its time limit is near or it is preempted, writes a checkpoint on that signal, and goes back to the queue;
the same command resumes it. It is requeued if the trainer has written a marker file, and never because of an exit code: a
launcher's exit code does not distinguish a signal from a failure, and a failure would only happen again.
"""

import hashlib
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from bigtrain.cluster.watchdog import START_S
from bigtrain.errors import UserError
from bigtrain.options import Options
from bigtrain.runs import atomic
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

OF_LAUNCHERS = (
    "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "NODE_RANK", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
)  # fmt: skip
"""Variables that a launcher sets for its ranks. The script unsets them, as they may be exported from another job."""

LAUNCHER_GRACE_S = 30
"""A launcher's default time between SIGTERM and SIGKILL of its ranks; a checkpoint may take longer."""

MARKER = "BIGTRAIN_REQUEUE_MARKER"
"""The environment variable with the path of the marker file, from the script to the trainer."""


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


@dataclass(frozen=True)
class Job:
    """What a script runs. Paths are absolute; `tasks` has the overrides of each task of an array, or is empty."""

    name: str
    folder: Path
    """The folder of the script, its output and its marker files: `slurm/` in the run folder."""
    directory: Path
    """The working directory, to which paths in a recipe are relative."""
    python: Path
    launch: Path
    """The folder launch/, with the commands."""
    recipe: Path
    overrides: Sequence[str]
    tasks: Sequence[Sequence[str]] = ()


def render(job: Job, options: SlurmOptions) -> str:
    """The script. Raises UserError for a value that is not one printable line, or a file name that Slurm does not accept."""
    return "\n".join(
        ["#!/bin/bash", *_directives(job, options), *_preparation(job, options), *_assignments(job, options), _SCRIPT]
    )


def _directives(job: Job, options: SlurmOptions) -> list[str]:
    if "\\" in str(job.folder):
        raise UserError(
            f"run.dir: {job.folder} has a backslash, which Slurm does not accept in a file name; choose another"
        )
    output = "%A_%a.out" if job.tasks else "%j.out"
    values: dict[str, Any] = {
        "job-name": job.name,
        "nodes": options.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": options.gpus_per_node or None,
        "cpus-per-task": options.cpus_per_task,
        "mem": options.mem,
        "partition": options.partition,
        "time": options.time,
        "account": options.account,
        "qos": options.qos,
        "array": f"0-{len(job.tasks) - 1}" if job.tasks else None,
        # Only to the script, which repeats it to the training processes.
        "signal": f"B:USR1@{options.signal_before_s}",
        "open-mode": "append",
        "output": str(job.folder).replace("%", "%%") + f"/{output}",
        **options.directives,
    }
    lines = [_directive(name, str(value)) for name, value in values.items() if value is not None]
    return [*lines, "#SBATCH --requeue"]


def _directive(name: str, value: str) -> str:
    """A line for sbatch: the value in double quotes, with a backslash before each backslash and each quote in it.

    (shlex.quote is for shells: sbatch reads a backslash as an escape even within single quotes.)
    """
    if not value:
        return f"#SBATCH --{name}"
    if not re.fullmatch(r"[A-Za-z0-9@%:,.=_/+-]+", value):
        value = '"' + _checked(name, value).replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"#SBATCH --{name}={value}"


def _preparation(job: Job, options: SlurmOptions) -> list[str]:
    """The lines before the script's own variables, because a site's setup file might set variables of the same names."""
    lines = [
        "",
        "told=0",
        "trap 'told=1' USR1",
        f"cd -- {shlex.quote(_checked('the folder', str(job.directory)))} || exit 1",
        # sbatch passes on the submitter's environment, where these variables belong to another job.
        f"unset {' '.join(OF_LAUNCHERS)}",
    ]
    return lines if options.setup is None else [*lines, f"source {shlex.quote(options.setup)}"]


def _assignments(job: Job, options: SlurmOptions) -> list[str]:
    values: dict[str, Any] = {
        "FOLDER": job.folder,
        "PYTHON": options.container_python if options.is_contained else job.python,
        "TRAIN": job.launch / "train.py",
        "LAUNCHER": job.launch / "accelerate" / "many_nodes.yaml",
        "RECIPE": job.recipe,
        "GPUS_PER_NODE": options.gpus,
        "PROCESSES_PER_NODE": options.ranks_per_node,
        "GRACE_S": options.grace_s,
        "MAX_RESTARTS": options.max_restarts,
    }
    lines = [f"{name}={shlex.quote(_checked(name.lower(), str(value)))}" for name, value in values.items()]
    lines.append(f"OVERRIDES=({_words(job.overrides)})")
    lines.append(f"SRUN=({_words(_srun_words(job, options))})")
    lines += _container_lines(job, options)
    if job.tasks:
        cases = [f"  {number}) OVERRIDES+=({_words(task)}) ;;" for number, task in enumerate(job.tasks)]
        lines += ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac"]
    return ["", *lines]


def _srun_words(job: Job, options: SlurmOptions) -> list[str]:
    words = [f"--{name}={value}" if value else f"--{name}" for name, value in options.srun.items()]
    if options.container_image is not None:
        mounts = [one if ":" in one else f"{one}:{one}" for one in _mounts(job, options)]
        words += [f"--container-image={options.container_image}", f"--container-mounts={','.join(mounts)}"]
        words.append(f"--container-workdir={job.directory}")
    return words


def _container_lines(job: Job, options: SlurmOptions) -> list[str]:
    """The words before the command that a node runs, and what it finds this repository's bigtrain by."""
    if not options.is_contained:
        return ["CONTAINER=()"]
    path = f'export PYTHONPATH={shlex.quote(str(job.launch.parent))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    if options.apptainer_image is None:
        return [path, "CONTAINER=()"]
    words = ["exec", *(["--nv"] if options.gpus else []), "--bind", ",".join(_mounts(job, options))]
    words += ["--pwd", str(job.directory), options.apptainer_image]
    return [path, f'CONTAINER=("$(command -v apptainer || command -v singularity || echo apptainer)" {_words(words)})']


def _mounts(job: Job, options: SlurmOptions) -> list[str]:
    """Folders that a container must see under their own paths, each once, and those that were asked for."""
    needed = [str(path) for path in (job.directory, job.launch.parent, job.recipe.parent, job.folder.parent)]
    for path in needed:
        if re.search("[:,]", path):
            raise UserError(
                f"{path}: has a colon or a comma, and containers cannot mount such a path; rename it, or use none"
            )
    given = options.container_mounts.split(",") if options.container_mounts is not None else []
    return list(dict.fromkeys([*needed, *given]))


def _words(words: Sequence[str]) -> str:
    return shlex.join(_checked("command line", word) for word in words)


def _checked(name: str, text: str) -> str:
    if text and not text.isprintable():
        raise UserError(f"{name}: {text!r} has a newline or a control character, which a job script cannot contain")
    return text


_SCRIPT = r"""
# The first task of an array has the same job number as the array, and a command for that number affects all tasks.
job="$SLURM_JOB_ID"
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then job="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi
restarts="${SLURM_RESTART_COUNT:-0}"
if ((restarts > MAX_RESTARTS)); then
  echo "job $job: was restarted $restarts times, and at most $MAX_RESTARTS (--max-restarts) are allowed; not run again" >&2
  exit 1
fi

# Remove a marker that an earlier start of this job has left.
export BIGTRAIN_REQUEUE_MARKER="$FOLDER/requeue-$SLURM_JOB_ID"
rm -f -- "$BIGTRAIN_REQUEUE_MARKER"
# Seconds that a launcher gives its ranks between SIGTERM and SIGKILL.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="$GRACE_S"
# Set or unset in both cases: the submitter's shell may have exported it.
if ((GPUS_PER_NODE == 0)); then export ACCELERATE_USE_CPU=true; else unset ACCELERATE_USE_CPU; fi

# What each node runs. USR1 is ignored by default: it would end a launcher; training installs its own handler.
node='trap "" USR1; exec "$0" "$@"'
flags=()
world=$((SLURM_NNODES * PROCESSES_PER_NODE))
if ((world > 1)); then
  address="${MASTER_ADDR:-}"
  if [[ -z "$address" ]]; then
    # This script runs on the job's first node.
    address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" 2>/dev/null | head -n 1)"
    address="${address:-${SLURMD_NODENAME:-$(hostname)}}"
    # A node's name need not resolve everywhere; Slurm itself knows the address.
    if ! getent hosts "$address" >/dev/null; then
      known="$(scontrol show node "$address" 2>/dev/null | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
      address="${known:-$address}"
    fi
  fi
  # A launcher starts each rank in its own session, where Slurm's signals do not reach it if Slurm tracks process groups.
  node='trap "" USR1
    "$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@" &
    launcher=$!
    trap "kill -USR1 \$(< /proc/$launcher/task/$launcher/children) 2>/dev/null" USR1
    trap : TERM
    while kill -0 "$launcher" 2>/dev/null; do wait "$launcher"; done
    wait "$launcher"'
  flags=(--config_file "$LAUNCHER" --num_machines "$SLURM_NNODES" --num_processes "$world"
    --main_process_ip "$address" --main_process_port "${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 20000))}")
fi

srun --kill-on-bad-exit=1 --label ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  "${SRUN[@]}" "${CONTAINER[@]}" bash -c "$node" "$PYTHON" "${flags[@]}" "$TRAIN" "$RECIPE" "${OVERRIDES[@]}" &
step=$!

# Repeatedly: a process that is still starting has no handler yet. Where there is no scancel, srun hands its signals on.
tell() {
  while kill -0 "$step" 2>/dev/null; do
    if command -v scancel >/dev/null; then scancel --quiet --signal=USR1 "$job.0"; else kill -USR1 "$step"; fi
    sleep 5
  done
}
trap 'tell &' USR1
if ((told)); then tell & fi
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?

if [[ -e "$BIGTRAIN_REQUEUE_MARKER" ]]; then
  rm -f -- "$BIGTRAIN_REQUEUE_MARKER"
  if ((restarts >= MAX_RESTARTS)); then
    echo "job $job: stopped by a signal with a checkpoint; not queued again after $restarts restarts (--max-restarts)" >&2
    exit 1
  fi
  # If it is no longer running, Slurm is ending or requeueing it already.
  state="$(squeue --noheader --format=%T --jobs="$job" 2>/dev/null)"
  if [[ -z "$state" ]]; then
    state="$(scontrol show job --oneliner "$job" 2>/dev/null | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p')"
  fi
  if [[ "${state:-RUNNING}" == RUNNING ]]; then
    if answer="$(scontrol requeue "$job" 2>&1)"; then
      echo "job $job: stopped by a signal with a checkpoint; queued again"
      code=0
    else  # not 0: what waits for the end of the training must not begin
      echo "job $job: stopped by a signal with a checkpoint, but it is not queued again ($answer); submit it again" >&2
      code=1
    fi
  fi
fi
exit "$code"
"""


def write_script(job: Job, script: str) -> Path:
    """Writes the script under a name with a hash of its content. Raises UserError if it cannot be written."""
    path = job.folder / f"job-{hashlib.sha256(script.encode()).hexdigest()[:8]}.sh"
    try:
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        atomic.make_folder(job.folder)
        atomic.write_bytes(path, script.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the job script ({error.strerror}); choose another folder with run.dir=PATH"
        ) from error
    return path


def submit(script: Path) -> str:
    """Submits the script with sbatch; returns the job's number. Raises UserError if sbatch is missing or refuses it."""
    try:
        done = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(
            f"sbatch cannot be run here ({error.strerror}): submit from a machine of the cluster that has Slurm's commands, "
            "or print the script with --dry-run"
        ) from error
    if done.returncode:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise UserError(f"sbatch refuses {script}: {reason}")
    return done.stdout.strip().split(";")[0]


def may_be_requeued() -> bool:
    """Whether this process runs in a job script from `render`, for which a training that a signal ended has not failed."""
    return MARKER in os.environ


def ask_for_requeue(signal: str) -> None:
    """Writes the marker file: a signal, and not a failure, ended training. For the main rank, after the checkpoint.

    Does nothing outside of a job script from `render`.
    """
    if may_be_requeued():
        atomic.write_json(Path(os.environ[MARKER]), {"signal": signal})
