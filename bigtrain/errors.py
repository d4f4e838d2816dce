"""The two ways in which a run may end early on purpose. Anything else is a defect and keeps its traceback."""


class UserError(ValueError):
    """Something that the user can put right.

    The message is one clear text that names the file, the key and the remedy. Doors print it without a traceback,
    once for all ranks, and exit with code 2.
    """


class RankError(UserError):
    """A user's mistake that one rank alone has met (a broken image in its share): that rank says so itself."""


class TrainingDiverged(RuntimeError):
    """More updates were non-finite than the recipe allows; names the step, the phase and the component."""
