"""Submits a training to Slurm: python launch/submit.py RECIPE.yaml --nodes N --gpus-per-node G [section.key=value ...]

Writes the job script into the run folder (slurm/) and submits it with sbatch; --dry-run prints it instead. The recipe is
checked first, for the number of processes of the job and without its data. Shortly before its time limit, or when it is
preempted, the job saves, is requeued and resumes; a job that fails is not requeued.

--sweep run.seed=0,1,2 submits an array with one run per value, each in its own folder under the recipe's; each task is
requeued on its own. Several --sweep: every combination.

--container-image (pyxis) or --apptainer-image runs the processes in a container, with this repository's code.

Defaults of a site are read from --site FILE, $BIGTRAIN_SITE or ~/.config/bigtrain/site.yaml, under the names of the flags:

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
from bigtrain.cluster.slurm import Job, render, submit, write_script
from bigtrain.cluster.slurm_options import FLAGS_OF_PAIRS, SlurmOptions, read_options, site_file
from bigtrain.cluster.sweep import combinations, run_folder
from bigtrain.plan import check
from bigtrain.recipe import load_recipe, saying_where
from bigtrain.runs.folder import RunFolder


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    options = read_options(site_file(arguments.site), _flags(arguments))
    job = _job(arguments)
    if job.tasks:
        RunFolder(job.folder.parent).check_claimable(with_runs_inside=True)
    checked = set()  # what is checked reads indexes, and does not depend on the seed: thousands of those cost one check
    for task in job.tasks or [[]]:
        overrides = [*arguments.overrides, *task]
        recipe = load_recipe(arguments.recipe, overrides)
        RunFolder(recipe.folder).check_claimable()  # the job script will lie there, or beside it
        without_run = recipe.model_dump_json(exclude={"run"})
        if without_run not in checked:
            with saying_where(recipe, arguments.recipe, overrides):
                check(recipe, options.ranks)
            checked.add(without_run)
    script = render(job, options)
    if arguments.dry_run:
        print(script, end="")
        return
    number = submit(write_script(job, script))
    runs = f" ({len(job.tasks)} runs)" if job.tasks else ""
    say(f"submitted{runs}: job {number}, its output: {job.folder / number}{'_*' if job.tasks else ''}.out")
    print(number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE.yaml", type=Path, help="what to train and how")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="keys of the recipe with other values, such as train.steps=100",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the job script; write and submit nothing")
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="section.key=VALUE,VALUE", help="a run for each value"
    )
    parser.add_argument("--site", type=Path, metavar="FILE", help="YAML with the site's defaults of the flags below")
    for name, field in SlurmOptions.model_fields.items():
        if name not in FLAGS_OF_PAIRS:
            text = (field.description or "").replace("%", "%%").replace("null: ", "default: ")
            default = "" if field.is_required() or field.default is None else f" ({field.default})"
            parser.add_argument(f"--{name.replace('_', '-')}", help=" ".join(text.split()) + default)
    for name, example in (("directives", "sbatch, such as constraint=a100"), ("srun", "srun, such as cpu-bind=cores")):
        text = f"another option of {example}; may be given several times"
        parser.add_argument(FLAGS_OF_PAIRS[name], dest=name, action="append", metavar="NAME=VALUE", help=text)
    return parser


def _flags(arguments: argparse.Namespace) -> dict[str, object]:
    """The flags that were given, by the names of the options that they set."""
    given = {name: getattr(arguments, name, None) for name in SlurmOptions.model_fields}
    flags: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    for name in FLAGS_OF_PAIRS.keys() & flags.keys():
        pairs = [given.partition("=") for given in getattr(arguments, name)]
        flags[name] = {key: value for key, _, value in pairs}
    return flags


def _job(arguments: argparse.Namespace) -> Job:
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    base = recipe.folder.absolute()
    tasks = [[*task, run_folder(base, task)] for task in combinations(arguments.sweep)] if arguments.sweep else []
    return Job(
        name=recipe.run.name,
        folder=base / "slurm",
        directory=Path.cwd(),
        python=Path(sys.executable),
        launch=Path(__file__).absolute().parent,
        recipe=arguments.recipe.absolute(),
        overrides=arguments.overrides,
        tasks=tasks,
    )


if __name__ == "__main__":
    run_cli(main)
