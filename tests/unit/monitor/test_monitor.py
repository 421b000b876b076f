"""What is written about a run."""

import http.server
import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from toolkit.config.schema import MonitorSection
from toolkit.errors import RunError
from toolkit.monitor import history, metrics
from toolkit.monitor.rate import RateMeter
from toolkit.monitor.sinks import BackgroundSink, JsonlSink, Sink, Sinks, WandbSink, sync_wandb
from toolkit.monitor.watch import check_finite
from toolkit.rundir import RunDir


def test_the_step_line_leaves_out_what_is_unknown() -> None:
    values = {
        metrics.LOSS: 2.4129,
        metrics.LEARNING_RATE: 3e-4,
        metrics.TOKENS_PER_S: 812_400.0,
        metrics.ETA_S: 33_120.0,
    }
    assert metrics.step_line(1200, num_steps=50_000, values=values) == (
        "step 1200/50000 | loss 2.413 | lr 3.0e-04 | 812k tok/s | eta 9h12m"
    )


def test_rates_count_the_newest_steps_and_not_the_first() -> None:
    meter = RateMeter(tokens_per_step=100, flops_per_token=10.0, peak_flops=2000.0)
    assert meter.step(step_s=60.0, data_s=1.0) == {metrics.STEP_S: 60.0}
    assert meter.eta_s(10) is None
    meter.step(step_s=1.0, data_s=0.0)
    values = meter.step(step_s=3.0, data_s=1.0)
    assert values[metrics.TOKENS_PER_S] == 50.0
    assert values[metrics.DATA_FRACTION] == 0.25
    assert values[metrics.MFU] == 0.25
    assert meter.eta_s(10) == 20.0


def test_steps_that_are_redone_replace_their_lines_and_a_torn_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path, attempt="1.0")
    for step in range(1, 8):
        sink.write(step, {"x": step})
    sink.close("FAILED")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 8, "x')
    history.rewind(path, step=4)
    sink = JsonlSink(path, attempt="1.1")
    sink.write(5, {"x": 50})
    sink.close("FINISHED")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["x"]) for line in lines] == [(1, 1), (2, 2), (3, 3), (4, 4), (5, 50)]


def test_a_run_that_goes_back_in_the_same_process_replaces_its_lines_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sinks = Sinks([JsonlSink(path, attempt="1.0")])
    for step in range(1, 6):
        sinks.write(step, {"x": step})
    sinks.rewind(2)
    sinks.write(3, {"x": 30})
    sinks.close("FINISHED")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["step"], line["x"]) for line in lines] == [(1, 1), (2, 2), (3, 30)]


class Broken:
    def write(self, step: int, values: Mapping[str, float]) -> None:
        raise OSError("disk full")

    def rewind(self, step: int) -> None:
        pass

    def close(self, outcome: str) -> None:
        raise OSError("disk full")


def test_a_sink_that_fails_is_switched_off_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sinks = Sinks([Broken(), JsonlSink(tmp_path / "m.jsonl", attempt="1.0")])
    sinks.write(1, {})
    sinks.write(2, {})
    sinks.close("FINISHED")
    assert len((tmp_path / "m.jsonl").read_text(encoding="utf-8").splitlines()) == 2
    assert caplog.text.count("disk full") == 1


class Slow:
    """A sink that opens when it is let."""

    def __init__(self, gate: threading.Event) -> None:
        gate.wait(60)
        self.told: list[tuple[int, Mapping[str, float]]] = []
        self.end = ""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.told.append((step, values))

    def close(self, outcome: str) -> None:
        self.end = outcome


def test_steps_wait_for_a_sink_that_opens_slowly_and_training_does_not() -> None:
    gate, opened = threading.Event(), []
    sink = BackgroundSink("slow", lambda: opened.append(Slow(gate)) or opened[0])
    sink.write(1, {"x": 1.0})
    sink.write(2, {"x": 2.0})
    assert opened == []
    gate.set()
    sink.close("FINISHED")
    assert opened[0].told == [(1, {"x": 1.0}), (2, {"x": 2.0})]
    assert opened[0].end == "FINISHED"


def test_a_sink_that_cannot_be_opened_is_switched_off_by_name(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> Sink:
        raise OSError("no key")

    sinks = Sinks([BackgroundSink("W&B", refuse)])
    sinks.close("FINISHED")
    assert "BackgroundSink is switched off: W&B: no key" in caplog.text


def test_all_attempts_write_to_one_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_dir = RunDir(tmp_path / "run")
    run_dir.root.mkdir()
    for step in (1, 2):
        sink = WandbSink(MonitorSection(wandb="offline"), run_dir, name="n", config={"a": 1})
        sink.write(step, {metrics.LOSS: 1.0})
        sink.close("FINISHED")
    run_id = run_dir.wandb_id_path.read_text(encoding="utf-8")
    directories = list(run_dir.wandb_dir.glob("offline-run-*"))
    assert directories
    assert all(run_id in directory.name for directory in directories)  # two of one second get a number


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers that the key is wrong, whatever is asked."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.parametrize("server", ["refuses", "is silent"])
def test_an_attempt_is_recorded_offline_where_wandb_cannot_be_used(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as listener:
        if server == "refuses":
            threading.Thread(target=listener.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{listener.server_port}"
        if server == "is silent":
            listener.server_close()
        for name, value in {"WANDB_BASE_URL": url, "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        wandb.teardown()  # it reads its environment once
        run_dir = RunDir(tmp_path / "run")
        run_dir.root.mkdir()
        caplog.set_level(logging.INFO, logger="toolkit")
        sink = WandbSink(MonitorSection(), run_dir, name="n", config={})
        sink.write(1, {metrics.LOSS: 1.0})
        sink.close("FINISHED")
        wandb.teardown()
        if server == "refuses":
            assert "W&B refused" in caplog.text
            listener.shutdown()
    assert "recorded offline; send it: python -m toolkit sync run" in caplog.text
    assert len(list(run_dir.wandb_dir.glob("offline-run-*"))) == 1
    with pytest.raises(RunError, match="W&B does not answer at http"):
        sync_wandb(run_dir)


def test_a_number_that_is_not_finite_is_named() -> None:
    assert check_finite(step=7, loss=1.0, grad_norm=None) is None
    assert "loss of step 7 is nan" in str(check_finite(step=7, loss=float("nan"), grad_norm=1.0))
    assert "gradient norm of step 7 is inf" in str(check_finite(step=7, loss=1.0, grad_norm=float("inf")))
