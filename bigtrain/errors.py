"""The errors by which a command ends on purpose. Any other exception is a defect and keeps its traceback."""

from collections.abc import Sequence


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
