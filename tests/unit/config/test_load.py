"""Configuration: traps of YAML, and mistakes that are all told at once."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.config.check import check_config
from toolkit.config.load import dump_config, load_config
from toolkit.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"
RUN_CONFIGS = sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "filters")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("run.tokens=5e5", 500_000),
        ("run.tokens=140e9", 140_000_000_000),
        ("batch.tokens_per_step=4_194_304", 4_194_304),
        ("monitor.wandb=off", "off"),
        ("run.name=no", "no"),
        ("cluster.time_limit=90", 90),
        ("cluster.time_limit=30m", 1800),
        ("cluster.time_limit=12:30:00", 45_000),
        ("cluster.time_limit=1-12:00:00", 129_600),
        ("cluster.time_limit=null", None),
        ("optim.peak_lr=1e-4", 1e-4),
        ("model.tie_word_embeddings=true", True),
        ("cluster.exclude=[node1, node2]", ["node1", "node2"]),
        ("data.source=corpus.jsonl", ["corpus.jsonl"]),
        ("parallel.deepspeed_extra={a: {b: 1}}", {"a": {"b": 1}}),
        ("data.mixture={hdfs://name/a: 3, b: 1e-1}", {"hdfs://name/a": 3.0, "b": 0.1}),
        ("data.path=null", None),
        ("health.limits={gpu matmul: 500, clock: 1e-1}", {"gpu matmul": 500.0, "clock": 0.1}),
    ],
)
def test_a_value_is_read_by_its_declared_type(setting: str, value: Any) -> None:
    section, name = setting.partition("=")[0].split(".")
    assert getattr(getattr(load_config(None, overrides=[setting]).config, section), name) == value


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("run.tokens=2.5", "no whole number"),
        ("run.tokens=null", "no number"),
        ("run.tokens=0", "less than 1"),
        ("parallel.zero_stage=4", "more than 3"),
        ("parallel.precision=fp8", "none of fp32, bf16"),
        ("data.mixture={a: 0}", "data.mixture: 0.0 is less than"),
        ("data.mixture={a: 1, a: 2}", "a is given twice"),
        ("model.n_layers=3", "did you mean model.num_hidden_layers"),
        ("model.hiden_size=3", "did you mean model.hidden_size"),
        ("tokens_per_step=3", "did you mean batch.tokens_per_step"),
        ("cluster.time_limit=soon", "no time"),
        ("nodes", "key.path=value"),
        ("run.name=null", "null is no text"),
        ("data.source=~", "~ is no list"),
        ("data.source=", "it is empty"),
        ("cluster.env=null", "a mapping is wanted"),
        ("monitor.wandb_project=a/b", "W&B takes"),
    ],
)
def test_a_mistake_is_told_in_words(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, overrides=[setting])


def test_all_mistakes_are_told_at_once_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("model:\n  hiden_size: 4\n  hidden_size: 2.5\n  hidden_size: 3\nparalel: {}\nrun: 7\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides=["optim.eps=x"])
    text = str(caught.value)
    for expected in (
        "bad.yaml:2",
        "bad.yaml:4",
        "given twice",
        "bad.yaml:5",
        "did you mean parallel",
        "run is no mapping",
        "optim.eps",
    ):
        assert expected in text, text


def test_later_layers_win_and_every_value_has_an_origin(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("run: {name: a, seed: 1}\noptim: {eps: 1e-7}\n")
    (tmp_path / "run.yaml").write_text("base: [base.yaml]\nrun:\n  name: b\n")
    (tmp_path / "site.yaml").write_text("cluster: {partition: gpu}\n")
    loaded = load_config(tmp_path / "run.yaml", overrides=["run.seed=3"], profile=tmp_path / "site.yaml")
    assert (loaded.config.run.name, loaded.config.run.seed, loaded.config.optim.eps) == ("b", 3, 1e-7)
    assert loaded.origins["run.name"] == f"{tmp_path}/run.yaml:3"
    assert loaded.origins["optim.eps"] == f"{tmp_path}/base.yaml:2"
    assert loaded.origins["cluster.partition"] == f"{tmp_path}/site.yaml:1"
    assert loaded.origins["run.seed"] == "command line"
    assert loaded.origins["run.root"] == "default"


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("base: [a.yaml]\n")
    with pytest.raises(ConfigError, match="circle"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("path", RUN_CONFIGS, ids=lambda path: path.stem)
def test_every_config_loads_and_comes_back_from_its_dump(path: Path, tmp_path: Path) -> None:
    loaded = load_config(path)
    assert check_config(loaded.config, loaded.origins) == []
    (tmp_path / "dump.yaml").write_text(dump_config(loaded.config), encoding="utf-8")
    assert load_config(tmp_path / "dump.yaml").config == loaded.config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["parallel.stages=4", "parallel.zero_stage=2"], "DeepSpeed's pipeline engine takes ZeRO 0 or 1"),
        (["parallel.stages=4", "parallel.zero_stage=0"], "clips gradients wrongly"),
        (["parallel.zero_stage=0", "parallel.precision=bf16"], "parallel.zero_stage=1"),
        (["parallel.stages=8"], "every stage needs a block"),
        (["parallel.stages=3"], "stages must divide"),
        (["batch.tokens_per_step=1000"], "whole samples"),
        (["batch.tokens_per_step=256", "parallel.stages=1"], "1 samples a step on 4 replicas"),
        (["model.num_attention_heads=3"], "must divide the width"),
        (["model.num_key_value_heads=3"], "must divide the query heads"),
        (["optim.warmup_tokens=2e6"], "warm-up must end"),
        (["cluster.env={WANDB_API_KEY: abc}"], "secret"),
        (["data.cache_dir=cache"], "an absolute path"),
        (["run.name=a/b"], "a run's name is a directory"),
        (["run.root=/runs/a\\b"], "Slurm drops backslashes"),
        (["data.mixture={a: 1}"], "a run reads one dataset or a mixture"),
        (["data.path=null"], "a run reads tokens"),
        (["parallel.deepspeed_extra={bf16: {check_grad_overflow: false}}"], "leave out a step that is not finite"),
        (["parallel.deepspeed_extra={train_batch_size: 7}"], "set batch.tokens_per_step"),
        (["parallel.deepspeed_extra={zero_optimization: {stage: 9}}"], "set parallel.zero_stage"),
        (["parallel.deepspeed_extra={fp16: {enabled: true}}"], "set parallel.precision"),
        (["parallel.deepspeed_extra={optimizer: {type: Adam}}"], "set the keys of optim"),
        (["parallel.deepspeed_extra={zero_optimization: big}"], "zero_optimization holds no keys"),
        (["parallel.deepspeed_extra={zero_optimization: {offload_param: cpu}}"], "offload_param holds no keys"),
        (["parallel.deepspeed_extra={zero_optimization: {bucket: 1}}"], "zero_optimization.bucket"),
        (["parallel.deepspeed_extra={zero_optimization: {reduce_bucket_size: big}}"], "a whole number there"),
        (["parallel.deepspeed_extra={zero_optimization: {overlap_comm: 3}}"], "true or false there"),
        (["parallel.deepspeed_extra={zero_optimization: {compute_grad_norm: false}}"], "leave out a step"),
        (["cluster.env={SLURM_PROCID: 0}"], "Slurm tells each rank"),
        (["cluster.env={MASTER_ADDR: a}"], "each attempt of a job sets its own"),
        (["cluster.env={BASH_ENV: a}"], "bash acts on it"),
        (["cluster.setup=[module load a, exit 0]"], "the job would end there"),
        (["cluster.setup=[exec true]"], "the job would end there"),
        (["cluster.sbatch_extra={chdir: /tmp}"], "cluster.sbatch_extra sets chdir"),
        (["cluster.sbatch_extra={ntasks_per_node: 3}"], "set cluster.nodes and cluster.gpus_per_node"),
        (["cluster.sbatch_extra={comment: 'a\\b'}"], "takes it for an escape"),
        (["cluster.sbatch_extra={gres: [a, b]}"], "a flag of sbatch has one value"),
        ([f"run.name={'a' * 5000}"], "at most 128 letters"),
        (["cluster.nodes=3", "parallel.stages=1", "batch.tokens_per_step=4096"], "--nodes that do: 1, 2, 4"),
        (["checkpoint.keep_every=7", "checkpoint.save_every=auto"], "only steps that are saved"),
    ],
)
def test_a_contradiction_is_refused_with_its_reason(settings: list[str], message: str) -> None:
    loaded = load_config(None, overrides=["cluster.nodes=4", "cluster.gpus_per_node=1", *settings])
    text = "\n".join(map(str, check_config(loaded.config, loaded.origins)))
    assert message in text, text
    assert "[command line]" in text


def test_what_the_toolkit_does_not_set_itself_may_be_set() -> None:
    zero = "{offload_optimizer: {device: cpu}, reduce_bucket_size: 5e8}"
    extra = f"{{zero_optimization: {zero}, bf16: {{immediate_grad_update: true}}, x: 1}}"
    lines = "[exec 2>&1, 'if false; then', '  exit 1', fi, export exit_code=0]"
    asked = [
        f"parallel.deepspeed_extra={extra}",
        f"cluster.setup={lines}",
        "cluster.env={NCCL_DEBUG: INFO, ENVIRON: x}",
    ]
    loaded = load_config(None, overrides=[*asked, "cluster.sbatch_extra={gres: 'gpu:8', time: null, ntasks: 1}"])
    assert check_config(loaded.config, loaded.origins) == []


def test_numbers_at_the_ends_of_their_ranges_are_judged_at_once() -> None:
    asked = ["cluster.nodes=100_000", "cluster.gpus_per_node=1000", "model.num_hidden_layers=10_000"]
    asked += ["parallel.stages=7", "batch.tokens_per_step=1e12", "data.seq_len=3", "batch.micro_batch=1e6"]
    loaded = load_config(None, overrides=asked)
    assert check_config(loaded.config, loaded.origins)
    divisible = load_config(None, overrides=[*asked, "parallel.stages=1", "batch.tokens_per_step=3e11"])
    assert check_config(divisible.config, divisible.origins)
