"""What of a shell's environment reaches Slurm's commands and its jobs; the one place that decides. Pure.

sbatch hands its whole environment to the job, and every command of Slurm takes flags from variables: a shell inside
another job, or a line in a profile, would change the request or the ranks without a word. So commands get no variable
of Slurm's, and a job only what is listed here, what cluster.pass_env names, and what the script says.

Source: Slurm 22.05, INPUT ENVIRONMENT VARIABLES of sbatch(1), srun(1), squeue(1), sinfo(1).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from toolkit.config.schema import ClusterSection

HONOURED = {
    "account": "SBATCH_ACCOUNT",
    "qos": "SBATCH_QOS",
    "partition": "SBATCH_PARTITION",
    "reservation": "SBATCH_RESERVATION",
}
"""Keys of the cluster section that a variable of the shell fills where they are open."""

_CONFIGURATION = ("SLURM_CONF", "SLURM_CONF_SERVER")
_OF_SLURM = ("SLURM*", "SBATCH_*", "SRUN_*", "SALLOC_*", "SINFO_*", "SQUEUE_*", "SCANCEL_*", "SCONTROL_*", "SACCT*")
_FOR_JOBS = (
    # who and where
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LD_LIBRARY_PATH", "LANG", "LANGUAGE", "LC_*", "TZ"),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", *_CONFIGURATION),
    # what finds programs and packages: modules, conda, virtual environments
    *("BASH_ENV", "BASH_FUNC_module%%", "BASH_FUNC_ml%%", "MODULE*", "LMOD_*", "LOADEDMODULES", "_LMFILES_"),
    *("__LMOD_*", "_ModuleTable*", "__MODULES_*", "CONDA_*", "_CONDA_*", "MAMBA_*", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONUSERBASE", "SPACK_*"),
    # keys and addresses of what a run reads and writes
    *("HF_*", "HUGGINGFACE_*", "HADOOP_*", "HDFS_*", "JAVA_HOME", "KRB5*", "AWS_*", "GOOGLE_*", "FSSPEC_*"),
    *("*_proxy", "*_PROXY", "SSL_CERT_*", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    # W&B: who sends where, what a run is called there, and how; what would make it another run, or none, stays behind
    *("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_CREDENTIALS_FILE", "WANDB_BASE_URL", "WANDB_APP_URL"),
    *("WANDB_TAGS", "WANDB_NOTES", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_USERNAME", "WANDB_USER_EMAIL"),
    *("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR", "WANDB_IGNORE_GLOBS"),
    *("WANDB_DISABLE_CODE", "WANDB_DISABLE_GIT", "WANDB_SAVE_CODE", "WANDB_HTTP_TIMEOUT", "WANDB_INSECURE_DISABLE_SSL"),
    *("WANDB_SILENT", "WANDB_QUIET", "WANDB_DEBUG", "WANDB_CORE_DEBUG", "WANDB_ERROR_REPORTING"),
    "TOOLKIT_PYTHON",
)
"""What a job gets of the shell: a name, or a pattern with `*`."""

_OF_RANKS = (
    *("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_*", "MKL_*", "KMP_*", "LD_PRELOAD"),
    *("NCCL_*", "GLOO_*", "UCX_*", "FI_*", "CUDA_*", "TORCH_*", "PYTORCH_*", "TRITON_*", "DS_*", "PMI*"),
)
"""What would change ranks, so that a user is told when it is not passed on."""


def fill_from_environment(section: ClusterSection, environ: Mapping[str, str]) -> ClusterSection:
    """Take what is open of account, QOS, partition and reservation from where sbatch would take it.

    The script has to say it: a job that goes on inside another one no longer sees these variables.
    """
    told: dict[str, Any] = find_honoured(section, environ)
    return replace(section, **told)


def find_honoured(section: ClusterSection, environ: Mapping[str, str]) -> dict[str, str]:
    """Say which open keys of the section a variable of the shell fills, and with what."""
    return {key: environ[name] for key, name in HONOURED.items() if getattr(section, key) is None and environ.get(name)}


def environ_for_commands(environ: Mapping[str, str]) -> dict[str, str]:
    """Give the environment in which Slurm's commands say the same whoever asks: times and arrays in full."""
    kept = {name: value for name, value in environ.items() if name in _CONFIGURATION or not _is_one(name, _OF_SLURM)}
    return {**kept, "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}


def environ_for_job(environ: Mapping[str, str], *, pass_env: Sequence[str]) -> dict[str, str]:
    """Give the environment that a job gets: sbatch runs in it and hands all of it on.

    Args:
        environ: of the shell, or of the job in which another one is handed in.
        pass_env: further names, or patterns with `*`.
    """
    return {name: value for name, value in environ.items() if _is_one(name, (*_FOR_JOBS, *pass_env))}


def describe_dropped(environ: Mapping[str, str], *, pass_env: Sequence[str]) -> str:
    """List what would have changed the request or the ranks and is not passed on; many of a kind in one word."""
    passed = environ_for_job(environ, pass_env=pass_env)
    told = {*HONOURED.values(), *passed}
    names = sorted(name for name in environ if name not in told and _is_one(name, (*_OF_SLURM, *_OF_RANKS)))
    return ", ".join(_shorten(names))


def _shorten(names: Sequence[str], *, most: int = 3) -> Iterable[str]:
    """Write more than `most` names of one beginning as `SLURM_* (41)`."""
    kinds = Counter(_beginning(name) for name in names)
    words = (f"{_beginning(name)}* ({kinds[_beginning(name)]})" if kinds[_beginning(name)] > most else name
             for name in names)  # fmt: skip
    return dict.fromkeys(words)


def _beginning(name: str) -> str:
    return re.match(r"[A-Za-z]+_?", name)[0]  # type: ignore[index]


def _is_one(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
