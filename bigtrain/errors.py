"""The errors by which a command ends on purpose. Any other exception is a defect and keeps its traceback."""

import re
import signal
from collections.abc import Collection, Sequence
from itertools import islice


def some_of(words: Collection[object], most: int) -> str:
    """The words for a message, the first `most` of many: "a, b and 7 more"."""
    rest = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(map(str, islice(words, most))) + rest


class UserError(ValueError):
    """An error that the user can correct.

    The message names the file, the key and the remedy; where it is about many files, each has one of `lines` below it. Commands
    print it without a traceback, once for all ranks, and exit with code 2.
    """

    def __init__(self, message: str, lines: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *lines]))
        self.printed = (message, *lines)
        """What is printed, a line each."""


class RankError(UserError):
    """A UserError that only one rank has raised (a broken image in its share), which that rank prints itself."""


class TrainingDiverged(RuntimeError):
    """More updates were non-finite than the recipe allows; names the step, the phase and the component."""


class OtherRankFailed(RuntimeError):
    """This rank ends because of another one, which has said why, so it has nothing to say."""


_DEAD_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (?:is killed by signal: ([^.]*)|exited unexpectedly)"
)
_NO_HOST_MEMORY = re.compile(r"DefaultCPUAllocator: (?:can't allocate memory|not enough memory)")


def known_failure(error: BaseException) -> str | None:
    """The sentence to print of a failure that is no defect, whose traceback would say nothing more; None for any other."""
    text = str(error)
    if isinstance(error, FloatingPointError):  # our own: weights that have diverged, which drawing or measuring meets
        return text
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        return (
            f"the GPU has no memory left ({text.partition('. ')[0]}); a larger train.accumulate or "
            "engine.activation_checkpointing=true needs less, and --plan says how much a recipe takes"
        )
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_HOST_MEMORY.search(text)):
        return (
            "the machine has no memory left for this process; fewer data.workers or a larger train.accumulate need less"
        )
    # The signal stands in the cause, if torch heard of it at all.
    dead = _DEAD_WORKER.search(f"{error.__cause__} {text}") if isinstance(error, RuntimeError) else None
    return _of_a_worker(dead[1]) if dead else None


def _of_a_worker(signal_name: str | None) -> str:
    """`signal_name`: as the C library describes the signal that ended it (strsignal), or None if that is not known."""
    number = next((each for each in signal.Signals if signal.strsignal(each) == signal_name), None)
    if signal_name is None:
        return "a data worker has ended unexpectedly, perhaps for lack of memory: fewer data.workers"
    name = f"{number.name}, signal {number.value}" if number is not None else f"signal {signal_name}"
    how = f"a data worker was killed ({name})"
    if number == signal.SIGKILL:
        return f"{how}, probably for lack of memory: fewer data.workers"
    if number == signal.SIGBUS:
        return f"{how}: a shard was cut short while it was read, or its disk or shared memory is full"
    return f"{how}; with data.workers=0 the samples are read in the main process, whose traceback says where"
