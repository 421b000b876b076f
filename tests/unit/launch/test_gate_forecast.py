"""What the gate makes of the plan: memory, host memory, walltime."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.gate import GPUS, FakeSlurm, make_context, only, verdicts, with_spec
from toolkit.cluster.partitions import MemoryRules, read_memory
from toolkit.launch.gate.context import Context
from toolkit.launch.gate.finding import Finding
from toolkit.launch.gate.forecast import check_forecast
from toolkit.launch.gate.host import ask_for_memory, default_bytes, reckon_host
from toolkit.plan.hardware import find_hardware
from toolkit.plan.search import TooLargeError, resolve

SEVEN_B = (
    "model.hidden_size=4096", "model.intermediate_size=11008", "model.num_hidden_layers=32",
    "model.num_attention_heads=32", "model.num_key_value_heads=32", "model.vocab_size=32000",
    "data.seq_len=4096", "batch.tokens_per_step=4_194_304", "run.tokens=140e9", "parallel.stages=null",
    "parallel.zero_stage=null", "parallel.recompute=null", "parallel.precision=bf16", "cluster.nodes=8",
    "cluster.gpus_per_node=8", "cluster.gpu_type=h100",
)  # fmt: skip


def of_seven_b(root: Path, *settings: str) -> Context:
    context = make_context(root, *SEVEN_B, *settings, cluster=FakeSlurm(), partition=GPUS)
    return with_spec(context, gpus_per_node=8, tasks_per_node=8)


def forecast(context: Context, check: str) -> Finding:
    return only(check_forecast(context), check)


def test_a_plan_with_room_is_well(tmp_path: Path) -> None:
    found = check_forecast(of_seven_b(tmp_path))
    assert verdicts(found) == {"memory": "ok", "host-memory": "ok", "walltime": "ok"}
    assert "of H100 on the fullest stage" in only(found, "memory").what


def test_device_memory_above_88_percent_is_warned_of(tmp_path: Path) -> None:
    context = of_seven_b(tmp_path)
    tight = replace(context.plan.hardware, memory_bytes=int(context.plan.fullest_bytes / 0.9))
    found = forecast(replace(context, plan=replace(context.plan, hardware=tight)), "memory")
    assert found.verdict.value == "warning"
    assert found.what.startswith("90% of")


def test_what_does_not_fit_is_refused_with_the_nearest_layout_and_a_way_out(tmp_path: Path) -> None:
    asked = ("parallel.stages=1", "parallel.zero_stage=1", "parallel.recompute=false", "cluster.gpu_type=a100-40")
    found = forecast(of_seven_b(tmp_path, *asked), "memory")
    assert found.verdict.value == "refused"
    assert "GiB too many" in found.what
    assert found.remedy.startswith("set parallel.")


def test_the_nearest_layout_comes_with_the_error(tmp_path: Path) -> None:
    context = of_seven_b(tmp_path)
    small = replace(find_hardware("h100"), memory_bytes=2**30)
    with pytest.raises(TooLargeError, match="does not fit") as caught:
        resolve(context.cfg, hardware=small)
    assert not caught.value.nearest.fits


def test_host_memory_counts_the_copies_for_saves_and_the_ranks(tmp_path: Path) -> None:
    context = of_seven_b(tmp_path)
    assert "of the 500.0 GiB of a node" in forecast(context, "host-memory").what
    fewer = with_spec(context, mem_per_node="11G")  # 8 of 64 ranks keep an eighth of 12 bytes x 6.7e9
    found = forecast(fewer, "host-memory")
    assert found.verdict.value == "warning"
    assert "cluster.mem_per_node" in found.remedy
    assert forecast(with_spec(context, mem_per_node="9G"), "host-memory").verdict.value == "refused"


def test_emulated_nodes_share_one_memory(tmp_path: Path) -> None:
    few, many = (make_context(tmp_path, f"cluster.nodes={nodes}") for nodes in (1, 16))
    parts = [float(forecast(one, "host-memory").what.partition("%")[0]) for one in (few, many)]
    assert parts[1] > 8 * parts[0]
    assert forecast(few, "memory").what.endswith("see host-memory")


@pytest.mark.parametrize(("text", "size"), [("500G", 500 << 30), ("2000", 2000 << 20), ("0", None), (None, None)])
def test_memory_is_read_in_slurms_words(text: str | None, size: int | None) -> None:
    assert read_memory(text) == size


def test_jobs_are_counted_from_the_predicted_time_and_held_against_the_restarts(tmp_path: Path) -> None:
    context = of_seven_b(tmp_path)
    no_limit = forecast(with_spec(context, time_limit_s=None), "walltime")
    assert "no time limit" in no_limit.what
    day = with_spec(context, time_limit_s=24 * 3600)
    found = forecast(day, "walltime")
    assert found.verdict.value == "ok"
    assert found.what.endswith(": 3 jobs of 24 h")
    few = make_context(tmp_path, *SEVEN_B, "cluster.max_requeues=1", cluster=FakeSlurm(), partition=GPUS)
    found = forecast(with_spec(few, time_limit_s=24 * 3600), "walltime")
    assert found.verdict.value == "warning"
    assert "would end unfinished: cluster.max_requeues=1" in found.reason


def test_what_is_done_already_takes_no_time(tmp_path: Path) -> None:
    context = with_spec(of_seven_b(tmp_path), time_limit_s=24 * 3600)
    directory = context.run_dir.checkpoints_dir / f"step-{context.cfg.num_steps - 1:08d}"
    directory.mkdir(parents=True)
    (directory / "COMPLETE").touch()
    assert "what is left takes" in forecast(context, "walltime").what
    assert forecast(context, "walltime").what.endswith("1 job of 24 h")


def test_a_time_limit_without_room_for_a_step_is_refused(tmp_path: Path) -> None:
    found = forecast(with_spec(of_seven_b(tmp_path), time_limit_s=240), "walltime")
    assert found.verdict.value == "refused"
    assert found.remedy == "ask for more --time"


def with_rules(context: Context, **rules: int) -> Context:
    partition = replace(context.partition, memory=MemoryRules(**rules))
    return replace(context, partition=partition, spec=ask_for_memory(context.spec, context.plan, partition))


def test_memory_is_asked_for_where_the_site_would_give_too_little(tmp_path: Path) -> None:
    context = of_seven_b(tmp_path)
    need = reckon_host(context.plan, ranks=8).total
    assert with_rules(context).spec.mem_per_node is None
    assert with_rules(context, default_per_node=400_000).spec.mem_per_node is None
    asked = with_rules(context, default_per_node=4000)
    got = read_memory(asked.spec.mem_per_node)
    assert got is not None
    assert 1.9 * need < got < 2.4 * need
    found = forecast(asked, "host-memory")
    assert found.verdict.value == "ok"
    assert found.what.endswith(f"--mem={asked.spec.mem_per_node}, asked for since DefMemPerNode=4000 gives 3.9 GiB")


def test_the_sites_default_is_by_node_by_cpu_or_by_gpu(tmp_path: Path) -> None:
    context = with_spec(of_seven_b(tmp_path), cpus_per_task=8)
    rules = {"default_per_cpu": 6000, "default_per_gpu": 48_000, "default_per_node": 384_000}
    for rule, size in rules.items():
        given = default_bytes(context.spec, with_rules(context, **{rule: size}).partition)
        assert given is not None
        assert given[0] >> 20 == 384_000


def test_more_memory_than_the_site_allows_is_refused_by_its_rule(tmp_path: Path) -> None:
    found = forecast(with_rules(of_seven_b(tmp_path), default_per_node=4000, most_per_node=8000), "host-memory")
    assert (found.verdict.value, found.reason) == ("refused", "MaxMemPerNode=8000 in partition gpu")
    own = with_spec(of_seven_b(tmp_path, "cluster.mem_per_node=600G"), mem_per_node="600G")
    found = forecast(with_rules(own, most_per_node=500_000), "host-memory")
    assert found.what == "600.0 GiB a node, allowed are 488.3 GiB"


def test_memory_that_is_said_in_another_way_is_left_as_it_is(tmp_path: Path) -> None:
    context = with_spec(of_seven_b(tmp_path), cpus_per_task=8, sbatch_extra={"mem-per-cpu": "2G"})
    asked = with_rules(context, default_per_node=4000)
    assert asked.spec.mem_per_node is None
    assert "of the 128.0 GiB of cluster.sbatch_extra" in forecast(asked, "host-memory").what
