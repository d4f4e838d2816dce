"""Submits a training to Slurm: python launch/submit.py RECIPE.yaml --nodes N --gpus-per-node G [section.key=value ...]

Writes the job script into the run folder (slurm/) and hands it to sbatch; --dry-run prints it instead. The recipe is checked
first, for the processes that the job will have and without its data. A while before its time limit, or when it is preempted,
the job saves, goes back to the queue and resumes; a job that fails stays as it is.

--sweep run.seed=0,1,2 submits an array with a run for each value, in folders of their own under the recipe's; each task goes
back to the queue by itself. Several --sweep: every combination.

Defaults for a site stand in --site FILE, $BIGTRAIN_SITE or ~/.config/bigtrain/site.yaml, under the names of the flags:

    partition: gpu
    account: vision
    time: "12:00:00"
    gpus_per_node: 8
    cpus_per_task: 96
    mem: 800G
    setup: /home/me/modules.sh
    directives:
      constraint: h100
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bigtrain.cli import run_cli, say
from bigtrain.cluster.slurm import Job, SlurmOptions, read_options, render, site_file, submit, write_script
from bigtrain.cluster.sweep import combinations, run_folder
from bigtrain.plan import check
from bigtrain.recipe import load_recipe


def main(argv: Sequence[str]) -> None:
    asked = _parser().parse_intermixed_args(argv)
    options = read_options(site_file(asked.site), _flags(asked))
    job = _job(asked)
    for task in job.tasks or [[]]:
        recipe = load_recipe(asked.recipe, [*asked.overrides, *task])
        check(recipe, options.ranks)
    script = render(job, options)
    if asked.dry_run:
        print(script, end="")
        return
    number = submit(write_script(job, script))
    runs = f" ({len(job.tasks)} runs)" if job.tasks else ""
    say(f"submitted{runs}: job {number}, what it prints: {job.folder / number}{'_*' if job.tasks else ''}.out")
    print(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="launch/submit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--dry-run", action="store_true", help="print the job script; write and submit nothing")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="section.key=VALUE,VALUE", help="a run for each value"
    )
    parser.add_argument("--site", type=Path, metavar="FILE", help="YAML with the site's defaults of what follows")
    for name, field in SlurmOptions.model_fields.items():
        if name != "directives":
            text = (field.description or "").replace("%", "%%")
            default = "" if field.is_required() or field.default is None else f" ({field.default})"
            parser.add_argument(f"--{name.replace('_', '-')}", help=" ".join(text.split()) + default)
    parser.add_argument(
        "--directive",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a further directive of sbatch, such as constraint=a100",
    )
    return parser


def _flags(asked: argparse.Namespace) -> dict[str, object]:
    """The flags that were given, by the names of the options."""
    given = {name: getattr(asked, name, None) for name in SlurmOptions.model_fields}
    flags: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if asked.directive:
        pairs = [directive.partition("=") for directive in asked.directive]
        flags["directives"] = {name: value for name, _, value in pairs}
    return flags


def _job(asked: argparse.Namespace) -> Job:
    recipe = load_recipe(asked.recipe, asked.overrides)
    base = recipe.folder.absolute()
    tasks = [[*task, run_folder(base, task)] for task in combinations(asked.sweep)] if asked.sweep else []
    return Job(
        name=recipe.run.name,
        folder=base / "slurm",
        directory=Path.cwd(),
        python=Path(sys.executable),
        launch=Path(__file__).absolute().parent,
        recipe=asked.recipe.absolute(),
        overrides=asked.overrides,
        tasks=tasks,
    )


if __name__ == "__main__":
    run_cli(main)
