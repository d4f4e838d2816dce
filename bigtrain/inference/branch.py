"""The checkpoint of another run that train.resume names."""

from pathlib import Path

from bigtrain.errors import UserError
from bigtrain.inference.model import opened_run
from bigtrain.recipe import Recipe, changes
from bigtrain.training.branching import Branch


def open_branch(recipe: Recipe) -> Branch | None:
    """None if the recipe's train.resume names none. Every rank calls it. Raises UserError."""
    resume = recipe.train.resume
    if resume is None:
        return None
    run, which = Path(resume.run), "newest" if resume.step is None else str(resume.step)
    if (run / "model_index.json").is_file():
        raise UserError(
            f"train.resume: {run} is an export, which has no state of training; begin from it by train.init={run}"
        )
    if run.resolve() == recipe.folder.resolve():
        raise UserError(
            f"train.resume: {run} is this run itself, which goes on by the same command; name a new one by run.name"
        )
    try:
        before, saved = opened_run(run, which)
    except UserError as error:
        raise UserError(f"train.resume: {str(error).replace(f'--checkpoint {which}: ', '')}") from None
    if before.family.kind != recipe.family.kind:
        raise UserError(f"train.resume: {run} is a {before.family.kind}, and not a {recipe.family.kind}")
    if saved.step >= recipe.train.steps:
        raise UserError(
            f"train.steps: {recipe.train.steps} are not beyond step {saved.step} of {run}, from which the run goes on "
            "(train.resume); ask for more"
        )
    return Branch(run, saved, tuple(changes(before, recipe)))
