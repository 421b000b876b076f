"""Which job is the run's: where its record and the scheduler agree."""

from pathlib import Path

import pytest
import xxhash

from tests.slurm_says import SlurmSays, line, shown
from toolkit.cluster.base import JobState
from toolkit.errors import RefusedError, RunError
from toolkit.launch.halt import halt, refuse_live
from toolkit.launch.identity import settle
from toolkit.launch.introduce import introduce
from toolkit.launch.jobs import Queue, find_job, job_status, look_for_job
from toolkit.launch.ledger import Attempt, JobRecord, begin_attempt, change_attempt, find_job_record, write_job_record
from toolkit.rundir import RunDir


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    run_dir = RunDir(tmp_path / "runs" / "r")
    run_dir.root.mkdir(parents=True)
    run_dir.config_path.write_text("run: {name: r}\ncluster: {gpus_per_node: 1}\n", encoding="utf-8")
    settle(run_dir)
    return run_dir


def record(run_dir: RunDir, **fields: object) -> JobRecord:
    fields = {"scheduler": "slurm", "job_id": "12", "attempts_before": 0, **fields}
    job = JobRecord(**fields)  # type: ignore[arg-type]
    write_job_record(run_dir, job)
    return job


def mark_of(run_dir: RunDir, request: str = "1") -> str:
    return f"toolkit:{settle(run_dir).run_id}:{request}"


def test_a_job_of_the_same_number_that_is_somebody_elses_is_not_the_runs(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, mark=mark_of(run_dir), cluster="there")
    other = shown("12", script="/h/other.sh")
    slurm(line("12", mark="toolkit:abc:9"), job=other)
    job = find_job(run_dir)
    assert job is not None
    assert (job.elsewhere, job.status.state) == ("there", JobState.UNKNOWN)
    with pytest.raises(RunError, match="job 12 of run r is on cluster there"):
        halt(run_dir, how="cancel")
    assert not any(words.startswith("scancel") for words in slurm.asked)
    assert not run_dir.halt_path.exists()
    with pytest.raises(RefusedError, match="--accept job"):
        refuse_live(run_dir)
    refuse_live(run_dir, accept=["job"])


def test_on_the_same_cluster_another_job_of_that_number_is_told(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, mark=mark_of(run_dir), cluster="here")
    slurm(job=shown("12", script="/h/other.sh"))
    status = job_status(run_dir)
    assert status is not None
    assert (status.state, status.reason) == (JobState.UNKNOWN, "Slurm has another job 12 now")
    refuse_live(run_dir)


def test_a_live_job_of_the_run_is_found_though_the_record_names_another(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, job_id="17", mark=mark_of(run_dir, "2"))
    slurm(line("15", mark=mark_of(run_dir)), line("17", state="FAILED", mark=mark_of(run_dir, "2")))
    status = job_status(run_dir)
    assert status is not None
    assert status.job_id == "15"
    with pytest.raises(RunError, match="run r is live: job 15 is RUNNING"):
        refuse_live(run_dir)


def test_a_job_whose_answer_was_lost_is_found_by_its_mark_or_was_not_taken(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, job_id="", mark=mark_of(run_dir))
    slurm(line("3", mark="toolkit:other:1"))
    assert job_status(run_dir) is None
    slurm(line("21", state="PENDING", mark=mark_of(run_dir)))
    status = job_status(run_dir)
    assert status is not None
    assert (status.job_id, status.state) == ("21", JobState.PENDING)


def test_where_a_site_replaces_comments_the_script_tells_whose_job_it_is(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, mark=mark_of(run_dir))
    slurm(line("12", script=str(run_dir.script_path)))
    status = job_status(run_dir)
    assert status is not None
    assert status.state is JobState.RUNNING


def test_who_looks_at_one_run_asks_one_question(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, mark=mark_of(run_dir))
    slurm(job=shown("12", mark=mark_of(run_dir)))
    status = job_status(run_dir, look_for_job(run_dir))
    assert status is not None
    assert status.state is JobState.RUNNING
    assert slurm.asked == ["scontrol --local show job -o 12"]


def test_one_question_serves_all_runs_and_what_the_ledger_tells_is_not_asked(run_dir: RunDir, slurm: SlurmSays) -> None:
    slurm(line("12", mark=mark_of(run_dir)))
    record(run_dir, mark=mark_of(run_dir))
    ended = RunDir(run_dir.root.with_name("ended"))
    ended.root.mkdir()
    settle(ended)
    record(ended, job_id="4", cluster="here")
    begin_attempt(ended, Attempt(attempt="4.0", job_id="4", nodes=("n1",), layout="", start_time=0.0))
    change_attempt(ended, "4.0", outcome="FINISHED", next="nothing: all tokens are done")
    queue = Queue(run_dir.root.parent)
    states = [status.state for run in (run_dir, ended) for status in [job_status(run, queue)] if status]
    assert states == [JobState.RUNNING, JobState.UNKNOWN]
    assert len(slurm.asked) == 1


def inside(job_id: str, *, num_tasks: int = 1) -> dict[str, str]:
    told = {"SLURM_JOB_ID": job_id, "TOOLKIT_ATTEMPT": f"{job_id}.0", "TOOLKIT_CLUSTER": "slurm"}
    return {**told, "SLURM_CLUSTER_NAME": "here", "SLURM_NTASKS": str(num_tasks), "SLURM_JOB_NUM_NODES": str(num_tasks)}


def test_a_job_writes_itself_into_the_record_when_it_starts(run_dir: RunDir, slurm: SlurmSays) -> None:
    mark = mark_of(run_dir)
    record(run_dir, job_id="", mark=mark, attempts_before=3, prepared_in="/p")
    slurm(line("21", mark=mark))
    introduce(run_dir, inside("21"))
    known = find_job_record(run_dir)
    assert known is not None
    assert (known.job_id, known.mark, known.cluster, known.attempts_before) == ("21", mark, "here", 3)
    assert known.prepared_in == "/p"
    assert known.submit_time is not None


def test_a_job_that_was_handed_in_by_hand_is_marked_and_recorded(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, mark=mark_of(run_dir))
    begin_attempt(run_dir, Attempt(attempt="12.0", job_id="12", nodes=("n1",), layout="", start_time=0.0))
    slurm(line("30", script="/checkout/sbatch/train.sbatch"))
    introduce(run_dir, inside("30"))
    known = find_job_record(run_dir)
    assert known is not None
    assert (known.job_id, known.attempts_before) == ("30", 1)
    assert f"scontrol update jobid=30 comment={known.mark}" in slurm.asked
    slurm(line("30", script="/checkout/sbatch/train.sbatch", mark=known.mark))
    status = job_status(run_dir)
    assert status is not None
    assert status.job_id == "30"


def test_a_second_job_of_a_run_ends_and_leaves_the_record_alone(run_dir: RunDir, slurm: SlurmSays) -> None:
    before = record(run_dir, mark=mark_of(run_dir))
    slurm(line("12", mark=mark_of(run_dir)), line("30"))
    with pytest.raises(RunError, match="run r has job 12, which is RUNNING"):
        introduce(run_dir, inside("30"))
    assert find_job_record(run_dir) == before


def test_a_job_of_another_size_than_the_layout_says_how_to_go_on(run_dir: RunDir, slurm: SlurmSays) -> None:
    before = record(run_dir, mark=mark_of(run_dir))
    slurm(line("30"))
    with pytest.raises(RunError) as caught:
        introduce(run_dir, inside("30", num_tasks=4))
    assert str(caught.value).splitlines() == [
        "job 30 has 4 tasks on 4 nodes, run r was planned for 1 nodes x 1",
        "  another number of ranks needs another layout",
        "  python -m toolkit resume r --nodes 4 makes one; or sbatch --nodes 1 --ntasks-per-node 1 sbatch/train.sbatch",
    ]
    assert find_job_record(run_dir) == before


def test_a_suspended_job_cannot_be_stopped_but_cancelled(run_dir: RunDir, slurm: SlurmSays) -> None:
    record(run_dir, mark=mark_of(run_dir))
    slurm(line("12", state="SUSPENDED", mark=mark_of(run_dir)))
    with pytest.raises(RunError, match="job 12 of run r is SUSPENDED: it cannot save"):
        halt(run_dir, how="stop")
    assert not run_dir.halt_path.exists()
    assert halt(run_dir, how="cancel").state is JobState.SUSPENDED
    assert cancelled(slurm) == ["12"]


def test_accounting_that_does_not_answer_is_asked_once_for_all_runs(run_dir: RunDir, slurm: SlurmSays) -> None:
    slurm()  # no job is known, and sacct fails
    queue = Queue(run_dir.root.parent)
    for name in ("r", "s", "t"):
        forgotten = RunDir(run_dir.root.with_name(name))
        forgotten.root.mkdir(exist_ok=True)
        record(forgotten, mark=mark_of(forgotten), cluster="here")
        status = job_status(forgotten, queue)
        assert status is not None
        assert status.state is JobState.UNKNOWN
    assert sum(words.startswith("sacct") for words in slurm.asked) == 1


def prepared(run_dir: RunDir, slurm: SlurmSays, *others: str) -> None:
    """Let a run wait for two jobs that make its data."""
    jobs_dir = run_dir.root.parent / ".prepare" / "d"
    mark = f"toolkit:{xxhash.xxh3_64_hexdigest(str(jobs_dir).encode())}"
    record(run_dir, mark=mark_of(run_dir), prepared_in=str(jobs_dir))
    waits = line("12", state="PENDING", mark=mark_of(run_dir))
    slurm(line("10", mark=f"{mark}:share-1"), line("11", state="PENDING", mark=f"{mark}:finish-1"), waits, *others)


def cancelled(slurm: SlurmSays) -> list[str]:
    return [words.removeprefix("scancel ") for words in slurm.asked if words.startswith("scancel")]


def test_a_cancel_ends_the_jobs_that_make_the_data_too(run_dir: RunDir, slurm: SlurmSays) -> None:
    prepared(run_dir, slurm)
    done = halt(run_dir, how="cancel")
    assert (done.job_id, done.ended, done.left) == ("12", ("10", "11"), ())
    assert cancelled(slurm) == ["12", "10", "11"]


def test_a_stop_lets_the_data_be_made(run_dir: RunDir, slurm: SlurmSays) -> None:
    prepared(run_dir, slurm)
    done = halt(run_dir, how="stop")
    assert (done.ended, done.left) == ((), ("10", "11"))
    assert cancelled(slurm) == ["12"]


def test_data_that_another_run_waits_for_is_made_all_the_same(run_dir: RunDir, slurm: SlurmSays) -> None:
    other = RunDir(run_dir.root.with_name("other"))
    other.root.mkdir()
    settle(other)
    record(other, job_id="13", mark=mark_of(other), prepared_in=str(run_dir.root.parent / ".prepare" / "d"))
    prepared(run_dir, slurm, line("13", state="PENDING", mark=mark_of(other)))
    assert halt(run_dir, how="cancel").left == ("10", "11")
    assert cancelled(slurm) == ["12"]


@pytest.mark.parametrize("content", [None, b"", b'{"scheduler": "slu', b"\x00" * 99, b"{}"])
def test_a_live_job_is_found_though_its_record_is_gone_or_torn(
    run_dir: RunDir, slurm: SlurmSays, content: bytes | None
) -> None:
    run_dir.config_path.write_text("cluster: {scheduler: slurm, gpus_per_node: 1}\n", encoding="utf-8")
    if content is not None:
        run_dir.job_path.write_bytes(content)
    slurm(line("15", mark=mark_of(run_dir)))
    with pytest.raises(RunError, match="run r is live: job 15 is RUNNING"):
        refuse_live(run_dir)
    slurm(line("15", mark="toolkit:other:1"))
    refuse_live(run_dir)
