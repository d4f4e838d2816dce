"""The job script without a Slurm: what it quotes and refuses, and what it does when its commands are stand-ins."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigtrain.cluster.slurm import (
    MARKER,
    OF_LAUNCHERS,
    Job,
    ask_for_requeue,
    render,
    submit,
    write_script,
)
from bigtrain.cluster.slurm_options import SlurmOptions, read_options
from bigtrain.cluster.sweep import combinations, run_folder
from bigtrain.errors import UserError

NASTY = "\"'`$;|&<>(){}[]*?!#~%\\=: é"


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands that write down how they were called, and a python that does what $ACT says."""
    folder = tmp_path_factory.mktemp("commands")
    commands = {
        "srun": 'printf "%s\\n" "$@" > "$SEEN.srun"; '
        'while [[ "$1" == --* ]]; do shift; done; echo $$ > "$SEEN.node"; SLURM_NODEID=1 exec "$@"',
        "apptainer": 'printf "%s\\n" "$@" > "$SEEN.apptainer"; while [[ "$1" != *.sif ]]; do shift; done; shift; exec "$@"',
        "python": 'printf "%s\\0" "$@" > "$SEEN"; eval "$ACT"',
        "scontrol": 'echo "$*" >> "$SEEN.scontrol"; case "$2" in hostnames) echo nowhere-1; echo nowhere-2 ;; '
        'node) echo "NodeName=nowhere-1 NodeAddr=10.1.2.3 NodeHostName=x" ;; esac',
        "squeue": 'echo "${STATE:-RUNNING}"',
        "scancel": 'echo "$*" >> "$SEEN.scancel"; kill -USR1 "$(< "$SEEN.node")"',
        "sbatch": 'echo "$*" >> "$SEEN.sbatch"; [[ -z "$REFUSE" ]] || { echo "$REFUSE" >&2; exit 1; }; echo "17;east"',
    }
    for name, body in commands.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def job_in(base: Path, commands: Path, **other: Any) -> Job:
    values: dict[str, Any] = {
        "name": "small", "folder": base / "run" / "slurm", "directory": base, "python": commands / "python",
        "launch": Path("/launch"), "recipe": base / "recipe.yaml", "overrides": [],
    }  # fmt: skip
    (base / "run" / "slurm").mkdir(parents=True, exist_ok=True)
    return Job(**(values | other))


def execute(script: str, folder: Path, commands: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{commands}:{os.environ['PATH']}", "SEEN": str(folder / "seen"), "ACT": ":", "SLURM_JOB_ID": "25",
        "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "nowhere-[1-2]",
    }  # fmt: skip
    return subprocess.run(
        ["bash"], input=script, env=environment | more, capture_output=True, text=True, check=False, timeout=60
    )


def seen(folder: Path) -> list[str]:
    """The words that python was called with."""
    return (folder / "seen").read_text().split("\0")[:-1]


ONE = SlurmOptions(gpus_per_node=0)
MARK = f'echo > "${MARKER}"'


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.sampled_from(NASTY + "ab/-"), min_size=1, max_size=12), min_size=3, max_size=3))
def test_whatever_is_written_arrives_as_it_was_written(stand_ins: Path, tmp_path: Path, texts: list[str]) -> None:
    recipe, value, partition = texts
    job = job_in(tmp_path, stand_ins, recipe=Path(f"/{recipe}"), overrides=[f"run.name={value}"])
    script = render(job, SlurmOptions(gpus_per_node=0, partition=partition))
    assert [line for line in script.splitlines() if line.startswith("#SBATCH --partition=")]
    assert subprocess.run(["bash", "-n"], input=script.encode(), check=False).returncode == 0
    done = execute(script, tmp_path, stand_ins)
    assert (done.returncode, done.stderr) == (0, "")
    assert seen(tmp_path) == ["/launch/train.py", str(job.recipe), f"run.name={value}"]


def test_a_value_that_slurm_could_misread_stands_in_its_own_kind_of_quotes(tmp_path: Path) -> None:
    script = render(job_in(tmp_path, tmp_path), SlurmOptions(gpus_per_node=0, account='a "b\\c" #d'))
    assert '#SBATCH --account="a \\"b\\\\c\\" #d"' in script.splitlines()
    percent = render(job_in(tmp_path, tmp_path, folder=Path("/runs/100%j/slurm")), ONE)
    assert "#SBATCH --output=/runs/100%%j/slurm/%j.out" in percent.splitlines()
    with pytest.raises(UserError, match=r"run\.dir.*backslash"):
        render(job_in(tmp_path, tmp_path, folder=Path("/runs/a\\b/slurm")), ONE)


@pytest.mark.parametrize("field", ["partition", "time", "account", "qos", "mem"])
@pytest.mark.parametrize("value", ["a\n#SBATCH --uid=0", "a\x1b[2J", "a\r", ""])
def test_a_newline_or_a_control_character_is_refused_with_the_flag(field: str, value: str) -> None:
    with pytest.raises(UserError, match=f"^--{field}: must be printable text on one line"):
        read_options(None, {"gpus_per_node": 1, field: value})


def test_newlines_in_paths_and_overrides_are_refused(tmp_path: Path) -> None:
    for changed in ({"recipe": Path("/a\nb.yaml")}, {"overrides": ["a.b=1\n2"]}, {"tasks": [["a.b=1\n2"]]}):
        with pytest.raises(UserError, match="newline or a control character"):
            render(job_in(tmp_path, tmp_path, **changed), ONE)


def test_only_directives_of_the_list_are_taken(tmp_path: Path) -> None:
    options = read_options(None, {"gpus_per_node": 1, "directives": {"constraint": "a100&ib", "exclusive": ""}})
    lines = render(job_in(tmp_path, tmp_path), options).splitlines()
    assert '#SBATCH --constraint="a100&ib"' in lines
    assert "#SBATCH --exclusive" in lines
    with pytest.raises(UserError, match="'wrap' is not among those that may be given: begin"):
        read_options(None, {"gpus_per_node": 1, "directives": {"wrap": "rm"}})
    with pytest.raises(UserError, match=r"^--directive comment: must be printable"):
        read_options(None, {"gpus_per_node": 1, "directives": {"comment": "a\nb"}})


def test_a_sites_defaults_stand_behind_the_flags_and_are_checked(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    (tmp_path / "modules.sh").touch()
    site.write_text(
        f"partition: slow\ngpus_per_node: 8\nsetup: {tmp_path}/modules.sh\ndirectives: {{constraint: a100, nice: '5'}}\n"
    )
    options = read_options(site, {"nodes": "2", "partition": "fast", "directives": {"constraint": "h100"}})
    assert (options.partition, options.ranks, dict(options.directives)) == (
        "fast",
        16,
        {"constraint": "h100", "nice": "5"},
    )
    for text, sentence in {
        "partitoin: x": f"^{site}: partitoin is not a key; there are nodes",
        "time: 12:00:00": f"^{site}: time: must be text; in a YAML file, put it in quotes",
        "setup: gone.sh": f"^{site}: setup: is not a file",
        "- a": f"^{site}: a site's file is a mapping",
        "a: [": f"^{site}: cannot be read as YAML",
    }.items():
        site.write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_options(site, {"gpus_per_node": 1})
    with pytest.raises(UserError, match="cannot read the site's defaults"):
        read_options(tmp_path / "gone.yaml", {})
    with pytest.raises(UserError, match="--gpus-per-node is missing"):
        read_options(None, {})
    with pytest.raises(UserError, match="one process a GPU; leave it out"):
        read_options(None, {"gpus_per_node": 2, "processes_per_node": 4})


def test_several_processes_get_one_launcher_a_node(stand_ins: Path, tmp_path: Path) -> None:
    """Node names do not resolve here: the address is Slurm's. The setup file may choose another meeting point."""
    setup = tmp_path / "setup.sh"
    setup.write_text("export MASTER_ADDR=10.9.9.9 MASTER_PORT=4242\n")
    for path, address, port in ((None, "10.1.2.3", "20025"), (str(setup), "10.9.9.9", "4242")):
        script = render(job_in(tmp_path, stand_ins), SlurmOptions(nodes=2, gpus_per_node=4, setup=path))
        assert "#SBATCH --gpus-per-node=4" in script.splitlines()
        assert execute(script, tmp_path, stand_ins, SLURM_NNODES="2").returncode == 0
        assert seen(tmp_path) == [
            "-m", "accelerate.commands.launch", "--machine_rank", "1", "--config_file", "/launch/accelerate/many_nodes.yaml",
            "--num_machines", "2", "--num_processes", "8", "--main_process_ip", address, "--main_process_port", port,
            "/launch/train.py", str(tmp_path / "recipe.yaml"),
        ]  # fmt: skip


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_another_job_left_in_the_submitters_environment_does_not_count(
    ranks: int, stand_ins: Path, tmp_path: Path
) -> None:
    """A stale MASTER_ADDR sent the nodes to another machine, where they missed each other."""
    stale = dict.fromkeys(OF_LAUNCHERS, "stale")
    script = render(job_in(tmp_path, stand_ins), SlurmOptions(gpus_per_node=0, processes_per_node=ranks))
    done = execute(script, tmp_path, stand_ins, ACT="env", **stale)
    assert done.returncode == 0
    assert "stale" not in done.stdout
    assert "stale" not in seen(tmp_path)
    assert {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"} <= set(OF_LAUNCHERS)


def test_ranks_on_the_cpu_are_asked_for_by_accelerates_variable(stand_ins: Path, tmp_path: Path) -> None:
    act = 'echo "cpu: ${ACCELERATE_USE_CPU:-no}"'
    for options, report in ((ONE, "cpu: true"), (SlurmOptions(gpus_per_node=1), "cpu: no")):
        script = render(job_in(tmp_path, stand_ins), options)
        assert report in execute(script, tmp_path, stand_ins, ACT=act, ACCELERATE_USE_CPU="1").stdout


@pytest.mark.parametrize(("signal_before_s", "grace_s"), [(1, 30), (300, 270), (1000, 970), (65535, 1800)])
def test_a_launcher_ends_its_ranks_before_slurm_ends_the_job(
    signal_before_s: int, grace_s: int, stand_ins: Path, tmp_path: Path
) -> None:
    """But leaves them never less than launchers do by themselves, and never more than the watchdog does."""
    options = SlurmOptions(gpus_per_node=0, signal_before_s=signal_before_s)
    done = execute(render(job_in(tmp_path, stand_ins), options), tmp_path, stand_ins, ACT="env")
    assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={grace_s}\n" in done.stdout


def test_the_setup_file_is_read_first(stand_ins: Path, tmp_path: Path) -> None:
    setup = tmp_path / "my modules.sh"
    setup.write_text("export FROM_SETUP=yes PYTHON=/gone\nfalse\n")
    script = render(job_in(tmp_path, stand_ins), SlurmOptions(gpus_per_node=0, setup=str(setup)))
    assert "setup: yes" in execute(script, tmp_path, stand_ins, ACT='echo "setup: $FROM_SETUP"').stdout


@pytest.mark.parametrize(
    ("act", "more", "code", "requeued"),
    [
        ("exit 0", {}, 0, False),
        ("exit 2", {}, 2, False),  # a failure of its own
        (f"{MARK}; exit 0", {}, 0, True),  # a signal, and a launcher that says 0
        (f"{MARK}; exit 1", {}, 0, True),  # a signal, and a launcher that says 1
        (f"{MARK}; exit 1", {"STATE": "COMPLETING"}, 1, False),  # Slurm is ending it, or queueing it again by itself
        (f"{MARK}; exit 0", {"SLURM_RESTART_COUNT": "3"}, 1, False),  # the cap
        (f"{MARK}; exit 0", {"SLURM_RESTART_COUNT": "2"}, 0, True),
        ("exit 0", {"SLURM_RESTART_COUNT": "3"}, 0, False),
    ],
)
def test_a_job_goes_back_to_the_queue_by_its_mark_alone(
    stand_ins: Path, tmp_path: Path, act: str, more: dict[str, str], code: int, requeued: bool
) -> None:
    job = job_in(tmp_path, stand_ins)
    (job.folder / "requeue-25").touch()  # of an earlier life
    script = render(job, SlurmOptions(gpus_per_node=0, max_restarts=3))
    assert execute(script, tmp_path, stand_ins, ACT=act, **more).returncode == code
    asked = (tmp_path / "seen.scontrol").read_text() if (tmp_path / "seen.scontrol").exists() else ""
    assert asked == ("requeue 25\n" if requeued else "")
    assert not list(job.folder.glob("requeue-*"))


def path_without(missing: Sequence[str], stand_ins: Path, folder: Path) -> str:
    """A PATH with the stand-ins but some, and with what else a job script runs, wherever Slurm is installed."""
    (folder / "tools").mkdir()
    for name in ("bash", "rm", "sed", "head", "sleep", "getent", "hostname", "setsid"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"there is no {name}, which a job script runs")
        (folder / "tools" / name).symlink_to(found)
    for path in stand_ins.iterdir():
        if path.name not in missing:
            (folder / "tools" / path.name).symlink_to(path)
    return str(folder / "tools")


@pytest.mark.parametrize(
    ("missing", "code", "requeued"),
    [(["squeue"], 0, True), (["squeue", "scontrol"], 1, False), (["scontrol"], 1, False)],
)
def test_a_job_on_a_node_without_slurms_commands_is_queued_again_if_it_can_be_and_fails_if_not(
    stand_ins: Path, tmp_path: Path, missing: list[str], code: int, requeued: bool
) -> None:
    """Exit code 0 would say to what depends on the job that the training is done."""
    script = render(job_in(tmp_path, stand_ins), ONE)
    done = execute(script, tmp_path, stand_ins, ACT=MARK, PATH=path_without(missing, stand_ins, tmp_path))
    assert done.returncode == code
    if requeued:
        assert (tmp_path / "seen.scontrol").read_text().endswith("requeue 25\n")
        assert "with a checkpoint; queued again" in done.stdout
    else:
        assert "with a checkpoint, but it is not queued again (" in done.stderr
        assert "scontrol: command not found); submit it again" in done.stderr


def test_nodes_meet_at_the_first_one_where_scontrol_cannot_be_asked(stand_ins: Path, tmp_path: Path) -> None:
    script = render(job_in(tmp_path, stand_ins), SlurmOptions(nodes=2, gpus_per_node=1))
    path = path_without(["scontrol"], stand_ins, tmp_path)
    assert execute(script, tmp_path, stand_ins, PATH=path, SLURM_NNODES="2", SLURMD_NODENAME="n7").returncode == 0
    assert seen(tmp_path)[seen(tmp_path).index("--main_process_ip") + 1] == "n7"


def test_a_type_of_gpu_may_be_asked_for(tmp_path: Path) -> None:
    options = read_options(None, {"nodes": "2", "gpus_per_node": "a100:4"})
    assert options.ranks == 8
    assert "#SBATCH --gpus-per-node=a100:4" in render(job_in(tmp_path, tmp_path), options).splitlines()
    with pytest.raises(UserError, match="one process a GPU; leave it out"):
        read_options(None, {"gpus_per_node": "a100:4", "processes_per_node": 2})
    for wrong in ("a100", "4:a100", "a100:0", "-1", "1.5", "a100:4:2"):
        with pytest.raises(UserError, match=r"^--gpus-per-node: must be a whole number, or TYPE:NUMBER such as a100:4"):
            read_options(None, {"gpus_per_node": wrong})


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("1d", "1-00:00:00"), ("1d12h", "1-12:00:00"), ("12h", "0-12:00:00"), ("90m", "90"), ("1d 12h 30min", "1-12:30:00"),
        ("48h", "2880"), ("12:00:00", "12:00:00"), ("2-00:00:00", "2-00:00:00"), ("2-12", "2-12"), ("90", "90"),
        ("UNLIMITED", "UNLIMITED"), ("1D", "1-00:00:00"),
    ],
)  # fmt: skip
def test_a_time_limit_is_written_as_slurm_reads_it(tmp_path: Path, given: str, written: str) -> None:
    options = read_options(None, {"gpus_per_node": 1, "time": given})
    assert f"#SBATCH --time={written}" in render(job_in(tmp_path, tmp_path), options).splitlines()


@pytest.mark.parametrize("wrong", ["1w", "a day", "1:2:3:4", "-5", "1d-2", "12:00:00h"])
def test_what_is_no_time_is_refused_before_the_queue(wrong: str) -> None:
    with pytest.raises(UserError, match=r"^--time: must be a time such as 12:00:00, .*1d12h"):
        read_options(None, {"gpus_per_node": 1, "time": wrong})


def test_a_time_limit_within_which_nothing_would_be_trained_is_refused() -> None:
    """It would be told to stop as it starts, a hundred times."""
    for time_limit in ("5", "5:00", "0:05:00", "5m", "0-0:5"):
        with pytest.raises(UserError, match=r"--time: .* is 300 seconds, and .*--signal-before-s"):
            read_options(None, {"gpus_per_node": 1, "time": time_limit})
    read_options(None, {"gpus_per_node": 1, "time": "5", "signal_before_s": 60})


def test_more_options_of_srun_reach_it_each_as_one_word(stand_ins: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("srun: {mpi: none, cpu-bind: cores}\n")
    options = read_options(site, {"gpus_per_node": 0, "srun": {"cpu-bind": "verbose, $(x)", "overlap": ""}})
    assert execute(render(job_in(tmp_path, stand_ins), options), tmp_path, stand_ins).returncode == 0
    words = (tmp_path / "seen.srun").read_text().splitlines()
    assert words[2:5] == ["--mpi=none", "--cpu-bind=verbose, $(x)", "--overlap"]
    for wrong in ("ntasks", "--mpi", "kill-on-bad-exit"):
        with pytest.raises(UserError, match=rf"^--srun: '{wrong}' cannot be given"):
            read_options(None, {"gpus_per_node": 0, "srun": {wrong: "1"}})
    with pytest.raises(UserError, match=r"^--srun mpi: must be printable text"):
        read_options(None, {"gpus_per_node": 0, "srun": {"mpi": "a\nb"}})


def test_pyxis_runs_a_node_in_the_image_that_sees_the_run_and_this_repository(stand_ins: Path, tmp_path: Path) -> None:
    options = SlurmOptions(
        gpus_per_node=0, container_image="nvcr.io#nvidia/pytorch:25.01-py3", container_mounts="/data,/a:/b"
    )
    job = job_in(tmp_path, stand_ins, python=Path("/gone/python"), launch=Path("/repository/launch"))
    done = execute(render(job, options), tmp_path, stand_ins, ACT='echo "path: $PYTHONPATH"', PYTHONPATH="/before")
    assert (done.returncode, done.stdout) == (0, "path: /repository:/before\n"), done.stderr
    words = (tmp_path / "seen.srun").read_text().splitlines()
    seen_inside = [f"{path}:{path}" for path in (tmp_path, "/repository", tmp_path / "run", "/data")]
    assert f"--container-image={options.container_image}" in words
    assert f"--container-mounts={','.join([*seen_inside, '/a:/b'])}" in words
    assert f"--container-workdir={tmp_path}" in words
    assert seen(tmp_path)[0] == "/repository/launch/train.py"


@pytest.mark.parametrize("gpus", [0, 2])
def test_apptainer_runs_a_node_in_the_image(stand_ins: Path, tmp_path: Path, gpus: int) -> None:
    options = SlurmOptions(gpus_per_node=gpus, apptainer_image="/images/torch.sif", container_python="python")
    job = job_in(tmp_path, stand_ins, python=Path("/gone/python"), launch=Path("/repository/launch"))
    done = execute(render(job, options), tmp_path, stand_ins)
    assert (done.returncode, done.stderr) == (0, "")
    words = (tmp_path / "seen.apptainer").read_text().splitlines()
    nv = ["--nv"] if gpus else []
    mounts = f"{tmp_path},/repository,{tmp_path / 'run'}"
    assert words[: 7 + len(nv)] == ["exec", *nv, "--bind", mounts, "--pwd", str(tmp_path), "/images/torch.sif", "bash"]
    assert "/repository/launch/train.py" in seen(tmp_path)


def test_containers_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for options, sentence in (
        ({"container_image": "a", "apptainer_image": "b"}, "give one of them"),
        ({"container_mounts": "/data"}, "there is no container"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_options(None, {"gpus_per_node": 0, **options})
    with pytest.raises(UserError, match="has a colon or a comma, and containers cannot mount such a path"):
        render(
            job_in(tmp_path, tmp_path, directory=Path("/a,b")), SlurmOptions(gpus_per_node=0, apptainer_image="x.sif")
        )


def test_a_job_that_slurm_restarted_too_often_does_not_run_at_all(stand_ins: Path, tmp_path: Path) -> None:
    script = render(job_in(tmp_path, stand_ins), SlurmOptions(gpus_per_node=0, max_restarts=3))
    done = execute(script, tmp_path, stand_ins, SLURM_RESTART_COUNT="4")
    assert done.returncode == 1
    assert "--max-restarts" in done.stderr
    assert not (tmp_path / "seen").exists()


def test_a_task_of_an_array_is_named_by_the_array_and_its_number_in_it(stand_ins: Path, tmp_path: Path) -> None:
    """Its first task bears the number of the whole array: requeueing that would restart every task."""
    job = job_in(tmp_path, stand_ins, overrides=["a.b=1"], tasks=[["run.seed=0"], ["run.seed=1", "run.dir=x y"]])
    script = render(job, ONE)
    assert "#SBATCH --array=0-1" in script.splitlines()
    assert any(line.startswith("#SBATCH --output=") and line.endswith("/%A_%a.out") for line in script.splitlines())
    task = {"SLURM_ARRAY_JOB_ID": "25", "SLURM_ARRAY_TASK_ID": "1"}
    assert execute(script, tmp_path, stand_ins, ACT=MARK, **task).returncode == 0
    assert seen(tmp_path)[2:] == ["a.b=1", "run.seed=1", "run.dir=x y"]
    assert (tmp_path / "seen.scontrol").read_text() == "requeue 25_1\n"


@pytest.mark.skipif(sys.platform != "linux", reason="Slurm's nodes run Linux: /proc, setsid")
@pytest.mark.parametrize(("ranks", "missing"), [(1, []), (2, []), (1, ["scancel"])])
def test_usr1_reaches_training_even_in_a_session_of_its_own(
    stand_ins: Path, tmp_path: Path, ranks: int, missing: list[str]
) -> None:
    """A launcher makes each rank such a session; and USR1 reaches that rank's own handler, the launcher being deaf to it. Where
    there is no scancel, srun hands its signals on."""
    rank = tmp_path / "rank.py"
    rank.write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(20)\n"
    )
    act = f'exec {sys.executable} {rank} "$SEEN.up"' if ranks == 1 else f'setsid {sys.executable} {rank} "$SEEN.up"'
    script = tmp_path / "job.sh"
    script.write_text(render(job_in(tmp_path, stand_ins), SlurmOptions(gpus_per_node=0, processes_per_node=ranks)))
    path = path_without(missing, stand_ins, tmp_path)
    environment = {"PATH": path, "SEEN": str(tmp_path / "seen"), "ACT": act}
    environment |= {"SLURM_JOB_ID": "25", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "nowhere-[1-2]"}
    with subprocess.Popen(["bash", script], env=environment, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 20
        while not (tmp_path / "seen.up").exists() and time.monotonic() < end:
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(20) == 3  # training's own code, not that of an interrupted wait
    if not missing:
        assert set((tmp_path / "seen.scancel").read_text().splitlines()) == {"--quiet --signal=USR1 25.0"}


def test_sbatch_gets_the_script_and_its_refusal_is_handed_on(
    stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_in(tmp_path, stand_ins)
    script = write_script(job, "#!/bin/bash\n")
    assert write_script(job, "#!/bin/bash\n") == script
    monkeypatch.setenv("PATH", f"{stand_ins}:{os.environ['PATH']}")
    monkeypatch.setenv("SEEN", str(tmp_path / "seen"))
    monkeypatch.setenv("REFUSE", "")
    assert submit(script) == "17"
    assert (tmp_path / "seen.sbatch").read_text() == f"--parsable {script}\n"
    monkeypatch.setenv("REFUSE", "sbatch: error: invalid partition specified: x")
    with pytest.raises(UserError, match=r"sbatch refuses .*: sbatch: error: invalid partition specified: x"):
        submit(script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"sbatch cannot be run here.*--dry-run"):
        submit(script)


def test_no_script_is_written_through_a_link(stand_ins: Path, tmp_path: Path) -> None:
    job = job_in(tmp_path, stand_ins)
    job.folder.rename(tmp_path / "elsewhere")
    job.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot write the job script \(is a link"):
        write_script(job, "#!/bin/bash\n")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_mark_is_left_only_within_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARKER, raising=False)
    ask_for_requeue("SIGUSR1")
    monkeypatch.setenv(MARKER, str(tmp_path / "requeue-1"))
    ask_for_requeue("SIGUSR1")
    assert json.loads((tmp_path / "requeue-1").read_text()) == {"signal": "SIGUSR1"}


def test_a_sweep_is_every_combination_in_a_folder_of_its_own() -> None:
    assert combinations(["run.seed=0,1", "a.b=[1,2],[3, 4],'x,y'"]) == [
        [f"run.seed={seed}", f"a.b={value}"] for seed in (0, 1) for value in ("[1,2]", "[3, 4]", "'x,y'")
    ]
    folders = {run_folder(Path("/runs/a"), words) for words in combinations(["run.seed=0,1", "a.b='x y',x/y,1e-4"])}
    assert len(folders) == 6
    assert 'run.dir="/runs/a/run.seed=0,a.b=1e-4"' in folders
    assert all("/" not in folder.removeprefix('run.dir="/runs/a/') for folder in folders)


@pytest.mark.parametrize(
    ("sweeps", "sentence"),
    [
        (["seed=1"], "not of the form"),
        (["run.seed"], "not of the form"),
        (["run.seed="], "names no value"),
        (["run.seed=1,1"], "names a value twice"),
        (["run.seed=1", "run.seed=2"], "is given twice"),
        (["run.dir=a,b"], "cannot be swept"),
        (["run.seed=[1"], "not a list of YAML values"),
    ],
)
def test_a_sweep_that_makes_no_sense_is_refused(sweeps: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^--sweep: .*{sentence}"):
        combinations(sweeps)
