"""Small programs in the place of Slurm's commands: they say what they are told, and keep what was asked of them."""

from pathlib import Path

CONFIG = "ClusterName             = {}"
SEP = "\x1f"
COMMANDS = ("sbatch", "squeue", "scontrol", "scancel", "sacct")


class SlurmSays:
    """Commands in a directory of their own.

    Args:
        directory: where they lie; it goes to the front of PATH.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *jobs: str, cluster: str = "here", job: str = "") -> None:
        """Let squeue list jobs (see `line`), and scontrol name the cluster and show a job; empty: it knows none."""
        here = self.directory
        texts = {"jobs": "\n".join(jobs), "config": CONFIG.format(cluster), "job": job}
        for name, text in texts.items():
            (here / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
        invalid = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
        show_job = f"cat {here}/job.txt" if job else invalid
        bodies = {
            "squeue": f"cat {here}/jobs.txt",
            "scontrol": f'case "$*" in *config) cat {here}/config.txt ;; *"show job"*) {show_job} ;; esac',
            "scancel": "true",
        }
        for name in COMMANDS:
            path = here / name
            body = bodies.get(name, "exit 1")
            path.write_text(f'#!/bin/bash\necho "{name} $*" >> {here}/asked\n{body}\n', encoding="utf-8")
            path.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        """Give all command lines so far."""
        path = self.directory / "asked"
        return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def line(
    job_id: str, *, state: str = "RUNNING", mark: str = "", script: str = "/x", submit: str = "2026-01-01T00:00:00"
) -> str:
    cells = [job_id, state, "None", "0", submit, "N/A", "N/A", "10:00", "n[1-2]", mark, script, "/dev/null", "N/A"]
    return SEP.join(f"{cell:<20}" for cell in cells) + SEP


def shown(job_id: str, *, state: str = "RUNNING", mark: str = "(null)", script: str = "/x") -> str:
    """Write what scontrol says of a job."""
    return (
        f"JobId={job_id} JobName=r UserId=u(1) JobState={state} Reason=None Requeue=1 Restarts=0 TimeLimit=00:10:00 "
        f"SubmitTime=2026-01-01T00:00:00 StartTime=Unknown EndTime=Unknown ExcNodeList=(null) NodeList=n[1-2] "
        f"Command={script} WorkDir=/x Comment={mark} StdErr=/dev/null StdIn=/dev/null StdOut=/dev/null Power="
    )
