"""The search: what it chooses, what it refuses and with which words."""

import time
from dataclasses import replace

import pytest

from toolkit.config.load import load_config
from toolkit.config.schema import RunConfig
from toolkit.errors import ConfigError
from toolkit.plan.advice import find_limit
from toolkit.plan.figure import draw_plans
from toolkit.plan.hardware import CPU, find_hardware
from toolkit.plan.proposal import plan_of
from toolkit.plan.report import plan_dict, plan_rows, verdict
from toolkit.plan.search import Wish, find_nodes, node_counts, plot_counts, rank_plans, resolve, scan_nodes

H100 = find_hardware("h100")


def config(*overrides: str, nodes: int = 8) -> RunConfig:
    llama_7b = [
        "model.hidden_size=4096", "model.intermediate_size=11008", "model.num_hidden_layers=32",
        "model.num_attention_heads=32", "model.vocab_size=32000", "data.seq_len=4096", "run.tokens=100000000000",
        "batch.tokens_per_step=4194304", "cluster.gpus_per_node=8", f"cluster.nodes={nodes}",
    ]  # fmt: skip
    return load_config(None, overrides=[*llama_7b, *overrides]).config


def test_the_first_is_the_fastest_of_those_with_room() -> None:
    plans = rank_plans(config(), hardware=H100)
    roomy = [plan for plan in plans if plan.is_roomy]
    assert plans[0].speed.step_s <= 1.02 * min(plan.speed.step_s for plan in roomy)
    assert all(plan.fits for plan in plans)
    assert not any(plan.is_roomy for plan in plans[len(roomy) :])


def test_a_thousand_gpus_are_searched_in_no_time() -> None:
    cfg = config("batch.tokens_per_step=67108864", nodes=128)
    started = time.process_time()
    plans = rank_plans(cfg, hardware=H100)
    assert len(plans) > 30
    assert time.process_time() - started < 5


def test_what_was_given_stays() -> None:
    plan = resolve(config("parallel.stages=4", "batch.micro_batch=2"), hardware=H100)
    assert (plan.layout.stages, plan.layout.micro_batch) == (4, 2)
    assert "parallel.stages" not in plan.notes[0]
    assert "parallel.recompute" in plan.notes[0]


def test_a_tight_layout_is_taken_only_with_a_warning() -> None:
    smaller = replace(H100, memory_bytes=int(plan_of(_whole(), hardware=H100).fullest_bytes / 0.91))
    plan = resolve(_whole(), hardware=smaller)
    assert not plan.is_roomy
    assert any("above 88%" in note for note in plan.notes)
    assert plan_rows([plan])[0].verdict == "tight"
    assert [verdict(part) for part in (0.5, 0.9, 0.96)] == ["fits", "tight", "refused"]


def _whole() -> RunConfig:
    return config("parallel.stages=2", "parallel.zero_stage=1", "parallel.recompute=false", "batch.micro_batch=1")


def test_what_does_not_fit_is_told_with_the_missing_room_and_ways_that_fit() -> None:
    cfg = config("parallel.stages=1", "parallel.zero_stage=1", "parallel.recompute=false", "batch.micro_batch=8")
    with pytest.raises(ConfigError) as caught:
        resolve(cfg, hardware=H100)
    text = str(caught.value)
    assert "GiB too many" in text
    assert "1 stages x 64 replicas" in text
    ways = text.split("\n  ")[-1].split("; or ")
    assert len(ways) >= 2
    for way in ways:
        settings = [f"{key}={value}" for key, value in (p.split("=") for p in way.removeprefix("set ").split(", "))]
        given = {"parallel.stages": "1", "parallel.zero_stage": "1", "parallel.recompute": "false",
                 "batch.micro_batch": "8"}  # fmt: skip
        given |= dict(setting.split("=") for setting in settings)
        nodes = int(given.pop("cluster.nodes", "8"))
        mended = config(*(f"{key}={value}" for key, value in given.items()), nodes=nodes)
        assert resolve(mended, hardware=H100).fits, way


def test_more_stages_than_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="every stage needs a block"):
        resolve(config("parallel.stages=64"), hardware=H100)


def test_a_deadline_gets_the_fewest_nodes_that_meet_it() -> None:
    plan = find_nodes(config(), Wish(deadline_s=4 * 86400, max_nodes=16), hardware=H100)
    nodes = plan.cfg.cluster.nodes
    assert plan.speed.run_s * 1.15 <= 4 * 86400
    fewer = [n for n in node_counts(16) if n < nodes]
    slow = scan_nodes(config(), fewer, hardware=H100)
    assert all(other.speed.run_s * 1.15 > 4 * 86400 for other in slow.values())
    assert "the deadline" in plan.notes[0]


def test_a_budget_gets_the_fastest_run_it_pays_for() -> None:
    plan = find_nodes(config(), Wish(budget_gpu_hours=4000, max_nodes=16), hardware=H100)
    assert plan.speed.gpu_hours * 1.15 <= 4000
    assert plan.cfg.cluster.nodes > 1


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (Wish(deadline_s=86400, budget_gpu_hours=3200, max_nodes=24), "the deadline and the budget contradict"),
        (Wish(deadline_s=600, max_nodes=16), "the deadline and the number of nodes contradict"),
        (Wish(budget_gpu_hours=1, max_nodes=16), "the budget and run.tokens contradict"),
    ],
)
def test_limits_that_contradict_each_other_are_named(wish: Wish, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_nodes(config(), wish, hardware=H100)


def test_what_limits_a_layout_is_named() -> None:
    deep = config("parallel.stages=8", "parallel.zero_stage=1", "parallel.recompute=true", "batch.micro_batch=8")
    few = plan_of(deep, hardware=H100)
    assert "bubble" in find_limit(few).what
    assert "micro-batches" in find_limit(few).remedy
    far = config(
        "parallel.stages=1", "parallel.zero_stage=3", "parallel.recompute=true", "batch.micro_batch=1", nodes=128
    )
    assert "ZeRO 3 traffic" in find_limit(plan_of(far, hardware=H100)).what


def test_a_plan_as_values_adds_up() -> None:
    plan = resolve(config(), hardware=H100)
    told = plan_dict(plan)
    assert sum(told["times"].values()) == pytest.approx(told["step_s"])
    assert told["gpu_hours"] == pytest.approx(told["run_s"] * 64 / 3600)
    assert told["causal_mfu"] < told["mfu"] < 1
    assert len(told["memory_bytes"]) == told["stages"] == len(told["boundaries"]) - 1


def test_the_picture_is_whole_and_names_each_plan() -> None:
    from xml.dom.minidom import parseString

    assert plot_counts(8) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert plot_counts(1)[:3] == [1, 2, 3]
    plans = scan_nodes(config(), [1, 2, 4, 8, 16], hardware=H100)
    picture = draw_plans(plans, title="7b & more")
    assert picture == draw_plans(plans, title="7b & more")
    words = [text.firstChild.data for text in parseString(picture).getElementsByTagName("text")]
    assert "7b & more" in words
    assert len([text for text in words if text.endswith(" GPU-h")]) == len(plans)
    assert all(f"{plan.layout.stages}x{plan.layout.replicas}" in words for plan in plans.values())
    whole = ("parallel.stages=1", "parallel.zero_stage=1", "batch.micro_batch=1", "parallel.recompute=true")
    assert parseString(draw_plans({1: plan_of(config(*whole), hardware=CPU)}, title="one, unchecked memory"))
