"""Slurm's commands as a site may have them: small scripts in the place of sbatch and squeue, run for real."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.cluster.test_slurm import SPEC
from toolkit.cluster.base import JobState
from toolkit.cluster.commands import SilentError, UndecidedError, run_command
from toolkit.cluster.slurm import SlurmCluster, read_job_id
from toolkit.errors import ClusterError

TAKE = """
mark=$(sed -n 's/^#SBATCH --comment=//p' "${@: -1}")
for word in "$@"; do case $word in --comment=*) mark=${word#--comment=} ;; esac; done
n=$(($(wc -l <"$HERE/queue") + 7)); echo "$n $mark" >>"$HERE/queue"
"""
"""Takes the job: what stands behind it decides what is said of it."""

LIST = """
sep=$(printf '\\037')
while read -r id mark; do
  printf '%s' "$id"
  for cell in PENDING None 0 N/A N/A N/A 10:00 '' "$mark" /x /y; do printf '%s%s' "$sep" "$cell"; done
  printf '%s\\n' "$sep"
done <"$HERE/queue"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Put scripts in the place of Slurm's commands."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (tmp_path / "queue").write_text("", encoding="utf-8")
    monkeypatch.setenv("PATH", f"{bin_dir}:{os.environ['PATH']}")

    def install(**commands: str) -> Path:
        for name, body in commands.items():
            path = bin_dir / name
            path.write_text(f"#!/bin/bash\nHERE={tmp_path}\n{body}\n", encoding="utf-8")
            path.chmod(0o755)
        return tmp_path

    install(squeue=LIST)
    return install


def queue(here: Path) -> list[str]:
    return [line.split()[0] for line in (here / "queue").read_text(encoding="utf-8").splitlines()]


def submit(here: Path, *, patience_s: float = 0.0, answer_s: float = 20.0) -> str:
    cluster = SlurmCluster(patience_s=patience_s, answer_s=answer_s)
    return cluster.submit(SPEC, script_path=here / "job.sbatch")


ANSWERS = {
    "an answer with the cluster's name": 'echo "$n;mini"',
    "lines of the site around it": 'echo "INFO: 93% of /home is used"; echo "$n"; echo "bye"',
    "an answer that was lost": 'echo "sbatch: error: Zero Bytes were transmitted or received" >&2; exit 1',
    "a wrapper that broke": 'echo "Traceback" >&2; exit 7',
    "no number at all": 'echo "Submitted, thank you"',
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_a_job_that_was_taken_is_found_whatever_is_answered(site: Callable[..., Path], answer: str) -> None:
    here = site(sbatch=TAKE + answer)
    assert submit(here) == "7"
    assert queue(here) == ["7"]


def test_a_refusal_is_told_without_the_greetings_of_the_site(site: Callable[..., Path]) -> None:
    here = site(sbatch='echo "*** Welcome to X" >&2; echo "sbatch: error: Invalid account" >&2; exit 1')
    with pytest.raises(ClusterError, match=r"^Slurm refused to submit pilot: Invalid account\n"):
        submit(here)


def test_a_job_is_not_handed_in_again_while_nobody_can_tell_whether_it_was_taken(site: Callable[..., Path]) -> None:
    silent = 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1'
    here = site(sbatch=TAKE + "sleep 60", squeue=silent)
    with pytest.raises(UndecidedError, match="the job may have been taken all the same"):
        submit(here, answer_s=0.5)
    assert queue(here) == ["7"]


def test_a_job_that_was_not_taken_is_handed_in_again(site: Callable[..., Path]) -> None:
    first = '[ -e "$HERE/asked" ] || { touch "$HERE/asked"; echo "error: Socket timed out" >&2; exit 1; }'
    here = site(sbatch=first + TAKE + 'echo "$n"')
    assert submit(here, patience_s=30.0) == "7"
    assert queue(here) == ["7"]


def test_a_follower_is_taken_once(site: Callable[..., Path]) -> None:
    here = site(sbatch=TAKE + 'echo "$n"')
    script = here / "job.sbatch"
    script.write_text(
        "#!/bin/bash\n#SBATCH --comment='project 7 toolkit:r:1'\n#SBATCH --exclude=n[1-2]\n", encoding="utf-8"
    )
    ask = {"script_path": script, "exclude": ["n4"], "mark": "toolkit:r:after-7.0", "pass_env": ()}
    followers = [SlurmCluster(patience_s=0.0).follow_up("7", **ask) for _ in range(2)]
    assert followers == ["7", "7"]
    assert (here / "queue").read_text(encoding="utf-8") == "7 project 7 toolkit:r:after-7.0\n"


def test_text_in_any_encoding_is_read() -> None:
    said = run_command(["printf", r"caf\xe9 \xff|x"], timeout_s=20)
    assert (said.code, said.out) == (0, "caf� �|x")


def test_a_command_that_takes_too_long_is_killed_with_what_it_started_and_its_words_are_kept(tmp_path: Path) -> None:
    body = f"echo 'sbatch: error: sleeping and retrying' >&2; sleep 50 & echo $! > {tmp_path}/pid; wait"
    said = run_command(["bash", "-c", body], timeout_s=1.0)
    assert said.code == 1
    assert said.reason == "sleeping and retrying"
    assert "bash said nothing for 1 s" in said.err
    assert said.is_passing
    pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_silence_is_told_from_a_refusal(site: Callable[..., Path]) -> None:
    site(scontrol='echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1')
    with pytest.raises(SilentError, match=r"^Slurm does not answer when asked to look at job 7: "):
        SlurmCluster(patience_s=0.0).state("7")


def test_the_number_of_a_job_is_read_from_the_line_that_has_nothing_else() -> None:
    assert read_job_id("7\n") == "7"
    assert read_job_id("INFO: node 12 is slow\n15;clusterx\nINFO: 3 h left\n") == "15"
    assert read_job_id("quota 12 of 100\n") is None


def test_a_job_is_forgotten_where_accounting_is_not_installed(
    site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(site() / "bin"))
    assert SlurmCluster().recall("7").state is JobState.UNKNOWN


def test_accounting_that_does_not_answer_is_not_waited_for(
    site: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.cluster.slurm._DATABASE_S", 0.2)
    site(sacct="sleep 60")
    assert SlurmCluster().recall("7").state is JobState.UNKNOWN
    site(sacct="echo 'CANCELLED by 5'")
    assert SlurmCluster().recall("7").state is JobState.CANCELLED
