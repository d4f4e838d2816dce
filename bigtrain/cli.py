"""What all commands share: exit codes, one message for all ranks, opening a run folder, flags from options."""

import errno
import json
import logging
import os
import platform
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from bigtrain.cluster import world
from bigtrain.cluster.launch import follow_launcher, tell_launcher
from bigtrain.cluster.ranks import adopt_ranks, without_local_rank
from bigtrain.cluster.watchdog import is_ending
from bigtrain.data.read.stream import Data
from bigtrain.errors import OtherRankFailed, RankError, TrainingDiverged, UserError, known_failure
from bigtrain.families.family import find_family
from bigtrain.formats import PHILOX_FORMAT
from bigtrain.home import word_of_home
from bigtrain.recipe import Recipe, differences, load_recipe, stored_format
from bigtrain.runs import atomic, checkpoint
from bigtrain.runs.folder import DIRECTORY, RUN, STARTS, RunFolder
from bigtrain.signals import ENDING, heeded, let_go_of_terminal
from bigtrain.training.same_data import check_before_writing
from bigtrain.untrusted import one_line, read_json

INITIAL, BRANCH = "initial_weights", "went_on_from"
"""The keys of environment.json that say where the weights of a run came from, by component, and which run it goes on from."""
PARENT = "extends"
"""The key of environment.json that says which recipe the run's own one extends, and what differs from it."""
_NOBODY_READS = 128 + signal.SIGPIPE
"""The exit code of a command whose output goes into a pipe that nobody reads any more: as if the signal had ended it."""
SPEAKER_FIRST_S = 10.0
"""How long the other ranks wait for the one that prints an error."""


class Signalled(KeyboardInterrupt):
    """A signal of ENDING has arrived; the command ends as on Ctrl-C, and leaves nothing half-written. `said`: whether the
    command has said so."""

    def __init__(self, number: int, said: bool = False) -> None:
        self.number, self.name, self.said = number, signal.Signals(number).name, said
        super().__init__(self.name)


class OneLine(logging.Formatter):
    """Log messages on one line, without control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


def _raise_signalled(number: int, frame: FrameType | None) -> None:
    if is_ending():
        return
    # Slurm and launchers repeat their signals, which must not interrupt the way out.
    for repeated in ENDING:
        signal.signal(repeated, signal.SIG_IGN)
    let_go_of_terminal()
    raise Signalled(number)


def run_cli(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(argv)`. Exit codes: 0; 2 with one message for a UserError; 1 with a message for a failure that is known, and
    with a traceback for any other; 128 + n if signal n (Ctrl-C's, or one of ENDING) ended the command, after it has saved what
    there was to save.

    Exits by `os._exit`, so that a rank that fails never waits for one that still works: the launcher sees the exit and ends
    the job.
    """
    code = 0
    try:
        # A job script ignores USR1 for the launcher's sake, which this process inherits.
        for number in heeded():
            signal.signal(number, _raise_signalled)
        if logging.lastResort is not None:  # which prints the warnings of ours, and of libraries without handlers
            logging.lastResort.setFormatter(OneLine())
        adopt_ranks()
        follow_launcher()
        main([word_of_home(word) for word in without_local_rank(sys.argv[1:])])
        if world.size() > 1:
            dist.destroy_process_group()
    except UserError as error:
        code = 2
        _say_error(error.printed, alone=isinstance(error, RankError))
    except OtherRankFailed:
        code = 1
        _let_the_other_rank_end_first()
    except BrokenPipeError as error:
        code = _NOBODY_READS if _nobody_reads() else 1
        if code == 1:  # a pipe of ours
            _show_traceback(error)
    except OSError as error:
        code = 2 if error.errno == errno.ENAMETOOLONG else 1
        if code == 1:
            _show_traceback(error)
        else:
            _say_error([f"{error.filename}: {error.strerror}; give another path"], alone=False)
    except Signalled as signalled:
        code = 128 + signalled.number
        if is_first() and not signalled.said:
            print(f"ended by {signalled.name}", file=sys.stderr)
    except KeyboardInterrupt:
        code = 130
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal and a launcher send it both
        print("interrupted", file=sys.stderr)
    except SystemExit:  # argparse: --help, or an unknown flag
        _flush()
        raise
    except TrainingDiverged as error:
        code = 1
        _say_error([str(error)], alone=False)
    except BaseException as error:
        code = 1
        failure = known_failure(error)
        if failure is None:
            _show_traceback(error)
        else:
            _say_error(["; ".join([failure, *getattr(error, "__notes__", [])])], alone=True)
    code = _flush() or code
    if code or world.size() > 1:
        os._exit(code)


def _flush() -> int:
    """Writes out what was printed; returns the exit code of a command whose reader has gone, as `head` does, or 0."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # what is left would be a traceback at the exit
    return _NOBODY_READS if gone else 0


def _nobody_reads() -> bool:
    """Whether stdout or stderr is a pipe whose reader has gone."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _say_error(lines: Sequence[str], *, alone: bool) -> None:
    """`alone`: this rank alone has met the error; otherwise all have, and the main one says so."""
    if not alone and not is_first():
        _let_the_other_rank_end_first()
        return
    sentence = f"error: {one_line(lines[0])}"
    print("\n".join([sentence, *map(one_line, lines[1:])]), file=sys.stderr, flush=True)
    tell_launcher(sentence)


def _show_traceback(error: BaseException) -> None:
    traceback.print_exception(error)
    tell_launcher(f"error: {type(error).__name__}: {one_line(str(error))}")


def _let_the_other_rank_end_first() -> None:
    """The launcher ends all ranks when the first one exits, and names that one as the cause. So this one waits until the rank
    that speaks has spoken."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(SPEAKER_FIRST_S)


def is_first() -> bool:
    """Whether this is the main rank according to the launcher; known before the process group exists."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Prints progress for people to stderr, once for all ranks."""
    if world.is_main():
        print(one_line(text), file=sys.stderr, flush=True)


def open_run(recipe: Recipe, data: Data, begun: Mapping[str, Any] | None = None) -> RunFolder:
    """Makes or reopens the run folder of a recipe, on the main rank; every rank gets the RunFolder. data: the training data;
    begun: where a new run and its weights come from, which environment.json keeps.

    Raises UserError if the folder holds checkpoints of a run that this recipe would not continue.
    """
    folder = RunFolder(recipe.folder)

    def claim() -> None:
        recipe_yaml = recipe.to_yaml().encode()
        folder.claim(recipe_yaml)
        for path in _recipes_of(folder):
            _check_recipe(path, folder, recipe)
        check_before_writing(folder, data)
        told = environment() | {RUN: folder.run, DIRECTORY: os.getcwd()}
        atomic.write_json(folder.environment, {**told, **(begun or _begun_with(folder))})
        atomic.write_bytes(folder.recipe, recipe_yaml)

    try:
        world.on_main(claim)
    except OSError as error:
        raise UserError(f"{folder.path}: cannot write to the run folder ({error.strerror})") from error
    return folder


def _begun_with(folder: RunFolder) -> dict[str, Any]:
    """What environment.json says of where the run and its first weights came from, and of its starts."""
    if not checkpoint.listed(folder.checkpoints):
        return {}
    try:
        recorded = read_json(folder.environment)
    except (OSError, ValueError):
        return {}
    return (
        {key: recorded[key] for key in (INITIAL, BRANCH, PARENT, STARTS) if key in recorded}
        if isinstance(recorded, dict)
        else {}
    )


def _recipes_of(folder: RunFolder) -> list[Path]:
    """The recipes with which what is in a folder was made: those within its checkpoints; the folder's for checkpoints that are
    older than that, and for pictures and evaluations of a run that left no checkpoint. Raises UserError if it is missing."""
    own = [checkpoint.recipe_of(path) for path in checkpoint.listed(folder.checkpoints)]
    if not own and folder.has_results() and folder.recipe.exists():
        return [folder.recipe]
    if None in own and not folder.recipe.exists():
        raise UserError(
            f"{folder.recipe}: is missing, and says which run its checkpoints belong to; restore it, or train in another "
            "folder with run.dir=PATH or run.name=NAME"
        )
    return list(dict.fromkeys(path or folder.recipe for path in own))


def _check_recipe(path: Path, folder: RunFolder, recipe: Recipe) -> None:
    """Raises UserError if a run that was begun with the recipe at `path` cannot go on with `recipe`."""
    if stored_format(path) < PHILOX_FORMAT and find_family(recipe.family.kind).draws_in_training:
        raise UserError(
            f"{path}: this run was begun by an older bigtrain (format {stored_format(path)}), whose random draws were others, "
            "so it cannot go on as the same experiment; sample, evaluate or export it as it is, and train anew in another "
            "folder with run.dir=PATH or run.name=NAME"
        )
    changed = differences(load_recipe(path), recipe)
    if changed:
        raise UserError(
            f"{folder.path}: holds a run of another recipe ({'; '.join(changed)}); undo the change, or train in another folder "
            "with run.dir=PATH or run.name=NAME"
        )


def environment() -> dict[str, Any]:
    """Versions, commit, world size and device: what a run's numbers may depend on besides the recipe."""
    packages = ("torch", "accelerate", "deepspeed", "diffusers", "webdataset", "timm", "numpy", "bigtrain")
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in packages},
        "commit": _commit(),
        "world_size": world.size(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def print_result(result: dict[str, Any]) -> None:
    """Prints one JSON object as the last line of stdout, once for all ranks."""
    if world.is_main():
        print(json.dumps(result), flush=True)
