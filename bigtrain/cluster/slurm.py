"""Slurm: the script of a job for sbatch, and the marker file that makes a job requeue itself.

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.cluster.slurm_options import SlurmOptions
from bigtrain.errors import UserError
from bigtrain.runs import atomic

OF_LAUNCHERS = (
    "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE",
    "NODE_RANK", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
)  # fmt: skip
"""Variables that a launcher sets for its ranks. The script unsets them, as they may be exported from another job."""

MARKER = "BIGTRAIN_REQUEUE_MARKER"
"""The environment variable with the path of the marker file, from the script to the trainer."""


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
