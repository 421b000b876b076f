"""`toolkit plan` looks ahead from any machine."""

import json
from pathlib import Path

import pytest

from toolkit.cli.main import main
from toolkit.config.load import find_profile

CONFIG = str(Path(__file__).parents[3] / "configs" / "runs" / "7b-8nodes.yaml")
ELSEWHERE = (CONFIG, "--gpu", "h100", "--gpus-per-node", "8", "cluster.scheduler=local")


@pytest.fixture(autouse=True)
def _no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TOOLKIT_CLUSTER_PROFILE", raising=False)
    assert find_profile({}, home=tmp_path, profiles_dir=tmp_path) is None


def test_a_run_for_another_machine_may_be_larger_than_this_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ELSEWHERE, "--nodes", "256", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stages"] * told["replicas"] == 256 * 8
    assert len(told["layouts"]) == 10


def test_a_deadline_finds_nodes_whose_interval_ends_before_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ELSEWHERE, "--deadline", "1d", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run_s"] * (1 + told["spread"]) <= 86400
    fewer = str(told["nodes"] - 1)
    assert main(["plan", *ELSEWHERE, "--nodes", fewer, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run_s"] * (1 + told["spread"]) > 86400


def test_a_picture_comes_with_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "plan.svg"
    assert main(["plan", *ELSEWHERE, "--nodes", "8", "--plot", str(picture)]) == 0
    said = capsys.readouterr().out
    assert str(picture) in said
    assert "<svg" in picture.read_text()


def test_a_device_without_bf16_is_planned_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *ELSEWHERE, "--gpu", "v100", "--nodes", "4"]) == 0
    assert "no units for bf16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--gpu", "h9000"), "hardware.yaml"),
        (("--budget", "100"), "contradict each other"),
        (("--gpu", "v100", "--nodes", "1", "--gpus-per-node", "4"), "GiB too many"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(
    words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *ELSEWHERE, *words]) == 2
    assert says in capsys.readouterr().err
