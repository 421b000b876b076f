"""No value of a text key runs anything, or adds a flag, in a script of a job or in the gate's trial of it."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.cluster.local import LocalCluster
from toolkit.cluster.script import render_script
from toolkit.cluster.spec import JobSpec, make_spec
from toolkit.config import load
from toolkit.config.load import load_config
from toolkit.config.schema import RunConfig
from toolkit.errors import ClusterError, ConfigError
from toolkit.launch.gate import surroundings

SHELL = "cluster.setup"  # lines of shell, which are there to be run


def holds_text(declared: Any) -> bool:
    return declared is str or declared is Any or any(holds_text(part) for part in get_args(declared))


KEYS = [key for key, declared in load._field_types(RunConfig).items() if holds_text(declared) and key != SHELL]
PAYLOADS = [
    "$(touch RAN)", "$$(touch RAN)", "`touch RAN`", "; touch RAN;", "\ntouch RAN\n", "\r\ntouch RAN\r\n",
    "' ; touch RAN ; '",
    '" ; touch RAN ; "', "\\'; touch RAN; \\'", "'$(touch RAN)'", "\"'\"'$(touch RAN)", "&& touch RAN", "| touch RAN",
    "<(touch RAN)", "x\n#SBATCH --hold", "x --hold", "x' --hold '", "x\" --hold \"", "x\\' --hold", "x\\", "#x",
    "@RANK_LOG@", "@ARRAY_TASK@", "x\u2028#SBATCH --hold", "x\x0b#SBATCH --hold", "x=$(touch RAN);y", "A$(touch RAN)=b",
    "a[$(touch RAN)]", "${x:-$(touch RAN)}", "x\x00y", "%j", "~", "!x", "*", "x}; touch RAN; {", "EOF\ntouch RAN",
]  # fmt: skip
PIECES = ["touch RAN", "$$(", ";", "\n", "'", '"', "\\", "$(", ")", "`", "&", "|", " ", "=", "x", "#SBATCH --hold", "{",
          "}", "A", "@RANK_LOG@", "[", "]", "${", "<<E", "--hold", "\t"]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the frozen code of a run, whose scripts of the toolkit do nothing."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("code/sbatch", "bin"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\ntouch started\n", encoding="utf-8")
    (tmp_path / "bin" / "srun").chmod(0o755)
    (tmp_path / "code/sbatch/env.sh").write_text("export TOOLKIT_ATTEMPT=1.0\n", encoding="utf-8")
    (tmp_path / "code/sbatch/tasks.sh").write_text("run_tasks() { code=0; }\n", encoding="utf-8")
    return tmp_path


def ask(cfg: RunConfig, place: Path) -> JobSpec:
    section, data = cfg.cluster, cfg.data
    words = (cfg.run.root, str(data.path), str(cfg.checkpoint.dir), data.column, *data.source, *data.mixture)
    return make_spec(
        section, name=cfg.run.name, command=("true", *words), work_dir=place / "code",
        log_dir=place / cfg.run.root / cfg.run.name / "logs", nodes=1, tasks_per_node=1,
    )  # fmt: skip


def forms_of(payload: str) -> Iterator[list[str]]:
    """Put a text into every key that takes text: as a value, an item, a name and the value of one."""
    text = json.dumps(payload)
    for form in (text, f"[{text}]", f"{{{text}: 1}}", f"{{name: {text}}}"):
        yield [f"{key}={form}" for key in KEYS]


def is_taken(setting: str, place: Path) -> bool:
    try:
        ask(load_config(None, overrides=[setting]).config, place)
    except (ConfigError, ClusterError):
        return False
    return True


def scripts_of(cfg: RunConfig, place: Path) -> list[str]:
    spec = ask(cfg, place)
    trial = surroundings._write_script(cfg.cluster.setup, cfg.cluster.env, Path("true"))
    return [render_script(spec), LocalCluster(place).render(spec), trial]


def sbatch_words(line: str) -> list[str]:
    """Read a line as sbatch does. Source: Slurm, src/sbatch/opt.c, _get_argument."""
    words, word, quote, escaped = [], "", "", False
    for character in line.removeprefix("#SBATCH") + " ":
        if escaped:
            word, escaped = word + character, False
        elif character == "\\":
            escaped = True
        elif quote:
            quote, word = ("", word) if character == quote else (quote, word + character)
        elif character in "'\"":
            quote = character
        elif character.isspace():
            words, word = ([*words, word] if word else words), ""
        elif character == "#":
            break
        else:
            word += character
    assert not quote
    assert not escaped
    return words


def assert_harmless(payload: str, place: Path) -> None:
    canary, environ = place / "RAN", {"PATH": f"{place}/bin:/usr/bin:/bin"}
    for form in forms_of(payload.replace("RAN", str(canary))):
        taken = [setting for setting in form if is_taken(setting, place)]
        for script in scripts_of(load_config(None, overrides=taken).config, place) if taken else ():
            for line in script.split("\n"):
                if line.startswith("#SBATCH"):
                    (word,) = sbatch_words(line)
                    assert word.partition("=")[0] != "--hold", line
            command = ["bash", "-c", script]
            subprocess.run(command, cwd=place / "code", env=environ, capture_output=True, check=False)
            assert not canary.exists(), script


@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_value_runs_nothing_and_adds_no_flag(payload: str, place: Path) -> None:
    assert_harmless(payload, place)


@settings(max_examples=15, deadline=None, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join))
def test_no_mixture_of_quotes_does_either(place: Path, payload: str) -> None:
    assert_harmless(payload, place)


@pytest.mark.parametrize("setup", ["exit 0", "source over.sh", "false", "cat <<E", "export A=1 \\", "exit 3"])
@pytest.mark.parametrize("render", [render_script, LocalCluster(Path("/nowhere")).render])
def test_a_setup_that_ends_the_shell_is_no_success(setup: str, render: Callable[[JobSpec], str], place: Path) -> None:
    (place / "code" / "over.sh").write_text("exit 0\n", encoding="utf-8")
    cfg = load_config(None, overrides=[f"cluster.setup=[{json.dumps(setup)}]"]).config
    spec = make_spec(
        cfg.cluster, name="a", command=("touch", "started"), work_dir=place / "code", log_dir=place / "logs",
        nodes=1, tasks_per_node=1,
    )  # fmt: skip
    environ = {"PATH": f"{place}/bin:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", render(spec)], cwd=place / "code", env=environ, capture_output=True, text=True, check=False
    )
    assert (place / "code" / "started").exists() == (done.returncode == 0)
    assert (done.returncode == 0) == (setup == "export A=1 \\")
    assert ("see cluster.setup" in done.stderr) == (done.returncode == 2)


@pytest.mark.parametrize(
    "fields",
    [
        {"partition": "a\n#SBATCH --hold"}, {"account": "a\\' --hold"}, {"env": {"A;touch x": "b"}},
        {"sbatch_extra": {"hold\n": True}}, {"sbatch_extra": {"comment": "a\nb"}}, {"exclude": ("a\nb",)},
        {"mem_per_node": "1\n"}, {"gpu_type": "a\nb"}, {"log_dir": Path("/a\nb")},
    ],
)  # fmt: skip
def test_a_job_cannot_be_asked_for_with_what_would_break_its_script(fields: dict[str, Any]) -> None:
    needed: dict[str, Any] = {"name": "a", "command": ("true",), "work_dir": Path("/"), "log_dir": Path("/logs")}
    with pytest.raises(ClusterError, match="would break the job's script"):
        JobSpec(**{**needed, "nodes": 1, "tasks_per_node": 1, "gpus_per_node": 0, **fields})
