"""Every file name of a run, once."""

from dataclasses import dataclass
from pathlib import Path

from toolkit import storage


@dataclass(frozen=True, slots=True)
class RunDir:
    """The directory of one run; a person can read all of it with `less`."""

    root: Path

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.root.name

    @property
    def config_path(self) -> Path:
        """Resolved configuration, no value open."""
        return self.root / "config.yaml"

    @property
    def asked_path(self) -> Path:
        """Configuration as it was asked for, what the planner decides left open: for a resume on other nodes."""
        return self.root / "asked.yaml"

    @property
    def plan_path(self) -> Path:
        """What was expected of the run, with reasons."""
        return self.root / "plan.txt"

    @property
    def expected_path(self) -> Path:
        """The same as values (JSON): what is measured is held against it."""
        return self.root / "expected.json"

    @property
    def identity_path(self) -> Path:
        """Who the run is, and where its directory was when it was submitted (JSON)."""
        return self.root / "identity.json"

    @property
    def code_dir(self) -> Path:
        """Frozen toolkits, one directory for each content; a job starts in one of them, never in the checkout."""
        return self.root / "code"

    @property
    def python_path(self) -> Path:
        """Names the interpreter that submitted the run, for jobs that are handed in by hand."""
        return self.root / "python"

    @property
    def script_path(self) -> Path:
        """Job script as submitted."""
        return self.root / "job.sbatch"

    @property
    def job_path(self) -> Path:
        """The newest job (JSON)."""
        return self.root / "job.json"

    @property
    def submit_lock_path(self) -> Path:
        """Held by who submits the run; beside its directory, which may be made and taken back meanwhile."""
        return self.root.parent / f".{self.root.name}.submit.lock"

    @property
    def attempts_path(self) -> Path:
        """One line an attempt (JSON lines)."""
        return self.root / "attempts.jsonl"

    @property
    def attempts_lock_path(self) -> Path:
        """Held by who changes the attempts."""
        return self.root / "attempts.lock"

    @property
    def halt_path(self) -> Path:
        """There while the user wants the run to stand still: who stops it leaves the reason in it."""
        return self.root / "halt"

    @property
    def metrics_path(self) -> Path:
        """One line a step (JSON lines)."""
        return self.root / "metrics.jsonl"

    def former_dir(self, number: int) -> Path:
        """What told of the run before it was begun again at step 0."""
        return self.root / "former" / str(number)

    @property
    def skips_path(self) -> Path:
        """Samples that the run leaves out, and why (JSON lines)."""
        return self.root / "skips.jsonl"

    def bad_step_dir(self, step: int, *, position: int) -> Path:
        """What a step read that was not applied; it began at a position of the order."""
        return self.root / "bad_steps" / f"step-{step:08d}-at-{position}"

    @property
    def wandb_dir(self) -> Path:
        """W&B's own files; wandb makes a folder of that name inside what it is given."""
        return self.root / "wandb"

    @property
    def wandb_id_path(self) -> Path:
        """Identity of the one W&B run that all attempts write to."""
        return self.root / "wandb" / "run-id"

    @property
    def tensorboard_dir(self) -> Path:
        """TensorBoard event files."""
        return self.root / "tensorboard"

    @property
    def checkpoints_dir(self) -> Path:
        """Checkpoints, unless checkpoint.dir names another directory: see `find_checkpoints`."""
        return self.root / "checkpoints"

    def find_checkpoints(self, asked: str | None) -> Path:
        """Say where checkpoints are written; where checkpoint.dir is a URL, they are copied there from here."""
        return storage.local_path(asked) if asked is not None and storage.is_local(asked) else self.checkpoints_dir

    @property
    def logs_dir(self) -> Path:
        """Logs of all attempts."""
        return self.root / "logs"

    def batch_log_path(self, job_id: str) -> Path:
        """What a job's script printed, and Slurm itself."""
        return self.logs_dir / f"{job_id}.batch.out"

    def attempt_dir(self, attempt: str) -> Path:
        """Logs of one attempt; `attempt` is `<job id>.<restart count>`."""
        return self.logs_dir / attempt

    def rank_log_path(self, attempt: str, *, rank: int) -> Path:
        """What a rank printed."""
        return self.attempt_dir(attempt) / f"{rank}.out"

    def failure_path(self, attempt: str, *, rank: int) -> Path:
        """What a rank said of its own failure (JSON)."""
        return self.attempt_dir(attempt) / f"{rank}.failure.json"

    def refusal_path(self, attempt: str) -> Path:
        """Why a job may not go on with the run, and leaves all of it as it is."""
        return self.attempt_dir(attempt) / "refused"
