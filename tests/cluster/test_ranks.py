"""Which rank a process is, by the variables of what started it."""

import pytest

from bigtrain.cluster import ranks
from bigtrain.cluster.ranks import adopt_ranks, first_node, tasks_of_nodes, without_local_rank
from bigtrain.errors import RankError

SRUN = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "0", "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "3,1",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-17@1",
}  # fmt: skip
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
TORCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR")


def adopted(variables: dict[str, str]) -> tuple[str | None, ...]:
    variables = dict(variables)
    adopt_ranks(variables)
    return tuple(variables.get(name) for name in TORCH)


def test_srun_and_the_mpiruns_say_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_resolves", lambda name: True)
    assert adopted(SRUN) == ("3", "4", "0", "1", "gpu03")
    here = ("1", "2", "1", "2", "127.0.0.1")
    assert adopted(OPEN_MPI) == here
    assert adopted(MPICH) == here
    assert adopted({name.replace("OMPI", "MV2"): value for name, value in OPEN_MPI.items()}) == here
    assert adopted(OPEN_MPI | SRUN) == here, "srun started mpirun's daemon, a task of each node"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_JOB_ID": "41", "SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
    ],
    ids=["a shell", "a batch script of a job of 4 tasks", "a step of one task", "mpirun -n 1"],
)
def test_one_process_stays_one(variables: dict[str, str]) -> None:
    assert adopted(variables) == (None,) * len(TORCH)


def test_what_the_user_or_torchrun_says_counts() -> None:
    assert adopted(OPEN_MPI | {"MASTER_ADDR": "10.0.0.1"})[-1] == "10.0.0.1"
    torchrun = dict(zip(TORCH, ("0", "2", "0", "2", "10.0.0.2"), strict=True))
    assert adopted(torchrun | SRUN) == ("0", "2", "0", "2", "10.0.0.2"), "srun started torchrun"


def test_ranks_of_one_job_meet_at_one_port_and_other_jobs_at_others() -> None:
    def port(variables: dict[str, str]) -> str:
        variables = {**variables, "MASTER_ADDR": "127.0.0.1"}
        adopt_ranks(variables)
        return variables["MASTER_PORT"]

    others = [
        SRUN, SRUN | {"SLURM_STEP_ID": "1"}, SRUN | {"SLURM_JOB_ID": "42"},
        OPEN_MPI, OPEN_MPI | {"PMIX_NAMESPACE": "prterun-a-18@1"},
    ]  # fmt: skip
    assert len({port(each) for each in others}) == len(others)
    assert port(SRUN) == port(SRUN | {"SLURM_PROCID": "0", "SLURM_NODEID": "0"})
    assert port(OPEN_MPI) == port(OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"})
    assert port(OPEN_MPI | {"MASTER_PORT": "4242"}) == "4242"


def test_deepspeeds_launcher_is_completed() -> None:
    variables = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert adopted(variables) == ("1", "2", "1", "2", "127.0.0.1")
    words = ["--local_rank=1", "recipe.yaml", "run.seed=1"]
    assert without_local_rank(words, variables) == words[1:]
    assert without_local_rank(words, {}) == words, "no launcher: argparse refuses it"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 and no RANK: start the ranks with accelerate launch"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x', which is no whole number"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE='', which is no whole number"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK='x', which is no whole number: start the ranks with accelerate launch"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29.5"}, "or unset MASTER_PORT"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "ranks are numbered from 0 to 1"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but no LOCAL_RANK"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "but no MASTER_ADDR; set it"),
        (
            MPICH | {"MPI_LOCALNRANKS": "1", "MPI_LOCALRANKID": "0"},
            "does not say where rank 0 is; give all of them MASTER",
        ),
    ],
)
def test_half_of_an_environment_is_refused_with_what_is_missing(variables: dict[str, str], sentence: str) -> None:
    with pytest.raises(RankError) as refusal:
        adopt_ranks(dict(variables))
    assert sentence in str(refusal.value)


def test_slurms_short_forms_are_read() -> None:
    assert tasks_of_nodes("2(x3),1") == [2, 2, 2, 1]
    names = {"gpu[03-07,9]-ib,cpu1": "gpu03-ib", "n1,n2": "n1", "n1": "n1", "a[1-2]b[07,9],c": "a1b07"}
    assert {short: first_node(short) for short in names} == names
