"""W&B's variables in the submitting shell: heeded where the configuration is silent, else said."""

import pytest

from toolkit.config.schema import MonitorSection
from toolkit.errors import ConfigError
from toolkit.monitor.wandb_env import fill_monitor, tell_shell


@pytest.mark.parametrize(
    ("shell", "mode"),
    [
        ({}, "auto"),
        ({"WANDB_MODE": "disabled"}, "off"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "Online"}, "online"),
        ({"WANDB_MODE": "nonsense"}, "auto"),
        ({"WANDB_DISABLED": "true"}, "off"),
        ({"WANDB_DISABLED": "false"}, "auto"),
        ({"WANDB_DISABLED": "1", "WANDB_MODE": "online"}, "off"),
    ],
)
def test_the_mode_is_taken_from_the_shell(shell: dict[str, str], mode: str) -> None:
    assert fill_monitor(MonitorSection(), shell).wandb == mode
    for asked in ("online", "offline", "off"):
        assert fill_monitor(MonitorSection(wandb=asked), shell).wandb == asked, "the configuration comes first"


def test_project_and_team_are_taken_from_the_shell() -> None:
    shell = {"WANDB_PROJECT": "speech", "WANDB_ENTITY": "lab"}
    filled = fill_monitor(MonitorSection(), shell)
    assert (filled.wandb_project, filled.wandb_entity) == ("speech", "lab")
    own = MonitorSection(wandb_project="text", wandb_entity="me")
    assert fill_monitor(own, shell) == own
    assert fill_monitor(filled, {"WANDB_PROJECT": "other"}) == filled, (
        "a resume from another shell stays in its project"
    )
    assert fill_monitor(MonitorSection(), {}).wandb_project == "toolkit"


@pytest.mark.parametrize(
    ("asked", "shell", "said"),
    [
        ({}, {}, ""),
        ({}, {"WANDB_MODE": "disabled"}, "by WANDB_MODE=disabled"),
        ({"wandb": "online"}, {"WANDB_DISABLED": "true"}, "monitor.wandb=online, not WANDB_DISABLED=true"),
        ({}, {"WANDB_MODE": "of"}, "WANDB_MODE=of means nothing to W&B"),
        ({"wandb_project": "a"}, {"WANDB_PROJECT": "b"}, "monitor.wandb_project=a, not WANDB_PROJECT=b"),
        ({}, {"WANDB_RUN_ID": "x"}, "WANDB_RUN_ID is not heeded (the run's directory decides)"),
        ({}, {"WANDB_NAME": "x", "WANDB_TAGS": "t"}, "WANDB_NAME is not heeded (run.name decides)"),
        ({}, {"WANDB_SWEEP_ID": "x", "WANDB_TAGS": "t"}, "WANDB_SWEEP_ID is not passed to the job"),
    ],
)
def test_what_the_shell_decided_is_said(asked: dict[str, str], shell: dict[str, str], said: str) -> None:
    section = fill_monitor(MonitorSection(**asked), shell)  # type: ignore[arg-type]
    assert tell_shell(section, shell, passed=["WANDB_TAGS"]) == said


def test_a_project_that_cannot_be_one_is_refused_at_submission() -> None:
    with pytest.raises(ConfigError, match="WANDB_PROJECT=a/b"):
        fill_monitor(MonitorSection(), {"WANDB_PROJECT": "a/b"})
