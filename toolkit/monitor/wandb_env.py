"""What W&B's variables in the shell that submits mean for a run.

Those that say who sends where and what a run is called (WANDB_API_KEY, WANDB_BASE_URL, WANDB_TAGS ...) reach the job,
and wandb reads them there. Others would make each attempt another run of W&B's, or none (WANDB_SWEEP_ID,
WANDB_RESUME_FROM, WANDB_SERVICE ...): they do not reach it, and it is said.

Source: wandb 0.31, env.py; WANDB_DISABLED as transformers reads it, which made it known.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

from toolkit.config.kinds import PROJECT
from toolkit.config.schema import MonitorSection
from toolkit.errors import ConfigError, Problem

DEFAULT_PROJECT = "toolkit"
_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
_TRUE = {"1", "on", "yes", "true"}
_DECIDED_HERE = {"WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT", "WANDB_ENTITY"}
_OURS = {
    "WANDB_NAME": "run.name",
    "WANDB_RUN_ID": "the run's directory",
    "WANDB_RESUME": "the run's directory",
    "WANDB_DIR": "the run's directory",
}
"""Variables without effect, and what decides in their place."""


def fill_monitor(section: MonitorSection, environ: Mapping[str, str]) -> MonitorSection:
    """Take the mode, project and team from the shell where the configuration leaves them open.

    Raises:
        ConfigError: the shell names a project that cannot be one.
    """
    found = _find_mode(environ)
    mode = found[1] if section.wandb == "auto" and found is not None else section.wandb
    return replace(
        section,
        wandb=mode,  # type: ignore[arg-type]
        wandb_project=section.wandb_project or _find_project(environ),
        wandb_entity=section.wandb_entity or environ.get("WANDB_ENTITY") or None,
    )


def tell_shell(section: MonitorSection, environ: Mapping[str, str], *, passed: Collection[str]) -> str:
    """Say which variables of the shell decided something, and which did not; empty: there are none.

    Args:
        section: as it was filled.
        environ: of the shell.
        passed: names of the variables that reach the job.
    """
    said = []
    found = _find_mode(environ)
    if found is not None:
        said.append(_compare(found[0], found[1] == section.wandb, f"monitor.wandb={section.wandb}"))
    elif environ.get("WANDB_MODE"):
        said.append(f"WANDB_MODE={environ['WANDB_MODE']} means nothing to W&B")
    for name, key, value in (
        ("WANDB_PROJECT", "wandb_project", section.wandb_project),
        ("WANDB_ENTITY", "wandb_entity", section.wandb_entity),
    ):
        if environ.get(name):
            said.append(_compare(f"{name}={environ[name]}", environ[name] == value, f"monitor.{key}={value}"))
    said += [f"{name} is not heeded ({ours} decides)" for name, ours in _OURS.items() if environ.get(name)]
    known = {*_DECIDED_HERE, *_OURS, *passed}
    said += [
        f"{name} is not passed to the job" for name in sorted(environ) if name[:6] == "WANDB_" and name not in known
    ]
    return "; ".join(said)


def _find_project(environ: Mapping[str, str]) -> str:
    project = environ.get("WANDB_PROJECT") or DEFAULT_PROJECT
    try:
        PROJECT.check(project)
    except ValueError as error:
        raise ConfigError([Problem(f"WANDB_PROJECT={project}", PROJECT.must, "set monitor.wandb_project")]) from error
    return project


def _find_mode(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """Give the variable that sets a mode, as it was written, and the mode in our words."""
    disabled = environ.get("WANDB_DISABLED", "")
    if disabled.lower() in _TRUE:
        return f"WANDB_DISABLED={disabled}", "off"
    word = environ.get("WANDB_MODE", "")
    return (f"WANDB_MODE={word}", _MODES[word.lower()]) if word.lower() in _MODES else None


def _compare(shell: str, is_heeded: bool, configured: str) -> str:
    return f"by {shell}" if is_heeded else f"{configured}, not {shell}"
