"""The gate's look at the Python environment and at W&B."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.gate import FakeSlurm, make_context
from toolkit.cluster.environment import environ_for_job
from toolkit.launch.gate import surroundings
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding
from toolkit.launch.gate.surroundings import check_environment, check_wandb, is_harmless


def environment(root: Path, *settings: str) -> Finding:
    environ = environ_for_job(os.environ, pass_env=())  # without what libraries in this process have set
    context = make_context(root, *settings, environ=environ, python=Path(sys.executable))
    return check_environment(context)[0]


def lines(root: Path, text: str) -> str:
    """Give a setting of lines that are read from a file."""
    (root / "site.sh").write_text(text + "\n", encoding="utf-8")
    return f'cluster.setup=["source {root}/site.sh"]'


def wandb(context: Context, **environ: str) -> Finding:
    return check_wandb(replace(context, environ=environ))[0]


def test_the_versions_of_here_are_told_when_nothing_changes_them(tmp_path: Path) -> None:
    found = environment(tmp_path)
    assert found.verdict.value == "ok"
    assert "torch " in found.what


def test_what_the_shell_changes_and_what_it_does_not_is_told(tmp_path: Path) -> None:
    shell = {"SBATCH_QOS": "long", "SBATCH_TIMELIMIT": "3", "NCCL_DEBUG": "INFO", "HOME": "/h"}
    context = make_context(tmp_path, environ=shell, python=Path(sys.executable), cluster=FakeSlurm())
    taken, dropped, _ = check_environment(context)
    assert (taken.verdict.value, taken.what) == ("note", "cluster.qos=long from SBATCH_QOS")
    assert (dropped.verdict.value, dropped.what) == ("note", "not passed to the job: NCCL_DEBUG, SBATCH_TIMELIMIT")


def test_python_is_started_after_the_lines_of_the_site(tmp_path: Path) -> None:
    found = environment(tmp_path, lines(tmp_path, f"touch {tmp_path}/ran"), "cluster.env={A: b}")
    assert (found.verdict.value, found.what[-19:]) == ("ok", "after cluster.setup")
    assert (tmp_path / "ran").exists()


def test_lines_that_change_the_versions_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "site" / "torch-0.1.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.1\n", encoding="utf-8")
    found = environment(tmp_path, f"cluster.env={{PYTHONPATH: '{tmp_path}/site'}}")
    assert found.verdict.value == "refused"
    assert "torch 0.1" in found.what


def test_lines_that_fail_here_are_a_warning_with_their_last_words(tmp_path: Path) -> None:
    found = environment(tmp_path, lines(tmp_path, "echo no such module >&2; exit 4"))
    assert (found.verdict.value, found.what[-14:]) == ("warning", "no such module")
    assert "exit code 4" in environment(tmp_path, lines(tmp_path, "exit 4")).what


def test_lines_that_hang_are_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_SETUP_S", 0.2)
    found = environment(tmp_path, lines(tmp_path, "sleep 600"))
    assert "took longer than 0.2 s" in found.what


@pytest.mark.parametrize(
    "line",
    [
        "rm -rf {}/$SLURM_JOB_ID/*", "export A=$(touch {}/ran)", "source x && touch {}/ran", "module load $SLURM_X {}",
        "conda run touch {}/ran", "export A=${{B@P}} {}", "unset $A {}", "export A=${{B[A]}} {}", "export A=${{!B}} {}",
    ],
)  # fmt: skip
def test_lines_that_may_change_things_are_not_tried_outside_of_a_job(tmp_path: Path, line: str) -> None:
    (tmp_path / "precious").mkdir()
    found = environment(tmp_path, f'cluster.setup=["{line.format(tmp_path)}"]')
    assert found.verdict.value == "note"
    assert "not tried here" in found.what
    assert (tmp_path / "precious").is_dir()
    assert not (tmp_path / "ran").exists()


def test_a_line_break_never_makes_a_line_harmless() -> None:
    assert is_harmless("export A=${B:-b}:/c")
    assert not is_harmless("export A=b\ntouch ran")


def test_lines_that_are_no_bash_are_refused(tmp_path: Path) -> None:
    for lines, message in {"['if true; then']": "unexpected end of file", "['cat <<E', a]": "here-document"}.items():
        found = environment(tmp_path, f"cluster.setup={lines}")
        assert found.verdict.value == "refused"
        assert message in found.what


def test_a_key_is_looked_for_as_wandb_does(tmp_path: Path) -> None:
    context = make_context(tmp_path, "monitor.wandb=online")
    found = wandb(context)
    assert found.verdict.value == "warning"
    assert "recorded offline" in found.what
    assert wandb(context, WANDB_API_KEY="x").verdict.value == "ok"
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n", encoding="utf-8")
    assert wandb(context).verdict.value == "ok"
    assert wandb(context, WANDB_BASE_URL="https://wandb.site.org").verdict.value == "warning"


@pytest.mark.parametrize(("mode", "verdict"), [("auto", "note"), ("offline", "ok"), ("off", "ok")])
def test_without_a_key_other_modes_are_well(tmp_path: Path, mode: str, verdict: str) -> None:
    assert wandb(make_context(tmp_path, f"monitor.wandb={mode}")).verdict.value == verdict


def test_what_the_shell_says_of_wandb_is_told(tmp_path: Path) -> None:
    off = wandb(make_context(tmp_path, "monitor.wandb=off"), WANDB_MODE="disabled")
    assert off.what == "off (by WANDB_MODE=disabled); numbers go to metrics.jsonl"
    kept = wandb(make_context(tmp_path, "monitor.wandb=offline"), WANDB_MODE="online")
    assert "recorded offline (monitor.wandb=offline, not WANDB_MODE=online)" in kept.what
