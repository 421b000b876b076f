"""What of a shell reaches Slurm's commands and its jobs."""

from toolkit.cluster.environment import (
    describe_dropped,
    environ_for_commands,
    environ_for_job,
    fill_from_environment,
    find_honoured,
)
from toolkit.config.schema import ClusterSection

INSIDE_A_JOB = {
    "SLURM_JOB_ID": "5",
    "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
    "SLURM_GPUS_PER_TASK": "4",
    "SLURM_MEM_PER_CPU": "100",
    "SLURM_ARRAY_JOB_ID": "5",
    "SLURM_RESTART_COUNT": "2",
    "SRUN_CPUS_PER_TASK": "1",
    "SLURMD_NODENAME": "n1",
}
SHELL = {"HOME": "/h", "PATH": "/bin", "SLURM_CONF": "/etc/slurm/x.conf", "WANDB_API_KEY": "k", "LS_COLORS": "x"}


def test_a_job_gets_what_it_needs_and_nothing_that_changes_it() -> None:
    shell = {**SHELL, **INSIDE_A_JOB, "SBATCH_TIMELIMIT": "3", "MASTER_ADDR": "10.0.0.9", "NCCL_DEBUG": "INFO"}
    kept = {"HOME": "/h", "PATH": "/bin", "SLURM_CONF": "/etc/slurm/x.conf", "WANDB_API_KEY": "k"}
    assert environ_for_job(shell, pass_env=()) == kept
    assert environ_for_job(shell, pass_env=("NCCL_*",)) == {**kept, "NCCL_DEBUG": "INFO"}


def test_modules_and_environments_of_the_shell_reach_the_job() -> None:
    shell = {
        "MODULEPATH": "/m",
        "BASH_FUNC_module%%": "() { :; }",
        "CONDA_PREFIX": "/c",
        "https_proxy": "p",
        "LC_ALL": "C",
    }
    assert environ_for_job(shell, pass_env=()) == shell


def test_what_would_split_a_run_at_wandb_does_not_reach_the_job() -> None:
    telling = {"WANDB_API_KEY": "k", "WANDB_TAGS": "t", "WANDB_BASE_URL": "u"}
    splitting = ("MODE", "RUN_ID", "RESUME", "RESUME_FROM", "SWEEP_ID", "SERVICE", "LAUNCH", "CONSOLE", "X_PRIMARY")
    assert environ_for_job({**telling, **{f"WANDB_{name}": "x" for name in splitting}}, pass_env=[]) == telling


def test_commands_see_no_flag_of_the_shell_and_tell_times_in_full() -> None:
    shell = {
        **SHELL,
        **INSIDE_A_JOB,
        "SQUEUE_FORMAT": "%i",
        "SINFO_PARTITION": "low",
        "SBATCH_PARTITION": "low",
        "SLURM_TIME_FORMAT": "relative",
        "SLURM_CLUSTERS": "other",
    }
    assert environ_for_commands(shell) == {**SHELL, "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}


def test_what_is_not_passed_is_told_where_it_would_have_changed_the_job() -> None:
    shell = {**SHELL, "SBATCH_TIMELIMIT": "3", "SBATCH_ACCOUNT": "physics", "MASTER_ADDR": "x", "NCCL_DEBUG": "INFO"}
    assert describe_dropped(shell, pass_env=()) == "MASTER_ADDR, NCCL_DEBUG, SBATCH_TIMELIMIT"
    assert describe_dropped(shell, pass_env=("NCCL_*",)) == "MASTER_ADDR, SBATCH_TIMELIMIT"
    assert (
        describe_dropped({**SHELL, **INSIDE_A_JOB}, pass_env=()) == "SLURMD_NODENAME, SLURM_* (6), SRUN_CPUS_PER_TASK"
    )
    assert describe_dropped(SHELL, pass_env=()) == ""


def test_what_the_shell_says_of_account_and_partition_is_taken_where_nothing_else_is_said() -> None:
    environ = {"SBATCH_ACCOUNT": "physics", "SBATCH_PARTITION": "low", "SBATCH_QOS": "", "SBATCH_RESERVATION": "r"}
    asked = ClusterSection(partition="main")
    filled = fill_from_environment(asked, environ)
    assert (filled.account, filled.partition, filled.qos, filled.reservation) == ("physics", "main", None, "r")
    assert find_honoured(asked, environ) == {"account": "physics", "reservation": "r"}
