"""A configuration that holds a secret is refused, wherever it stands, and the refusal does not tell it."""

from pathlib import Path

import pytest

from toolkit.config.check import check_config
from toolkit.config.load import load_config

SECRET = "Zq7canaryPw9"

HOLDING = [
    f"cluster.env={{PGPASS: {SECRET}}}",
    f"cluster.env={{MY_PW: {SECRET}}}",
    f"cluster.env={{DATABASE_URL: 'postgres://me:{SECRET}@db/x'}}",
    f"cluster.env={{HTTPS_PROXY: 'http://me:{SECRET}@proxy:3128'}}",
    f"cluster.env={{EXTRA: '--token={SECRET}'}}",
    f"cluster.setup=['wandb login {SECRET * 3}']",
    f"cluster.setup=['huggingface-cli login --token {SECRET}']",
    f"cluster.setup=['docker login -u me -p {SECRET} registry']",
    f"cluster.setup=['pip install --index-url https://me:{SECRET}@pypi/simple x']",
    f"cluster.setup=['curl -u me:{SECRET} https://host/x']",
    f"cluster.setup=['curl -H \"Authorization: Bearer {SECRET}\" https://host/x']",
    f"cluster.setup=['export HF_TOKEN={SECRET}']",
    f"cluster.sbatch_extra={{export: 'ALL,HF_TOKEN={SECRET}'}}",
    f"cluster.sbatch_extra={{comment: 'password={SECRET}'}}",
    f"cluster.srun_extra=['--export=ALL,HF_TOKEN={SECRET}']",
    f"data.path=hdfs://me:{SECRET}@nn:8020/data",
    f"data.mixture={{'ftp://me:{SECRET}@host/data': 1}}",
    f"data.source=['https://b.s3.amazonaws.com/k?X-Amz-Signature={SECRET}']",
    f"data.tokenizer=https://me:{SECRET}@host/tokenizer.json",
    f"checkpoint.dir=ftp://me:{SECRET}@host/x",
    f"monitor.wandb_project=hf_{SECRET * 2}",
    f"parallel.deepspeed_extra={{monitor: {{api_key: {SECRET}}}}}",
    f"run.name=ghp_{SECRET * 2}",
]

HARMLESS = [
    "cluster.env={TOKENIZERS_PARALLELISM: 'false', GOOGLE_APPLICATION_CREDENTIALS: /etc/key.json, HF_TOKEN_PATH: /x/y}",
    "cluster.env={HTTPS_PROXY: 'http://proxy:3128', DATABASE_URL: 'postgres://db/x', BYPASS: 'x', MAX_TOKENS: '5'}",
    "cluster.setup=['export HF_TOKEN=$(cat ~/.cache/huggingface/token)', 'module load cuda/12.4']",
    "cluster.sbatch_extra={export: 'ALL,NCCL_DEBUG=INFO', gres: 'gpu:8'}",
    "cluster.pass_env=[HF_TOKEN, MY_PASSWORD]",
    "data.path=hdfs://nn:8020/data",
    "data.tokenizer=tokenizer.json",
    "run.name=eos_token-sweep",
]


@pytest.mark.parametrize("setting", HOLDING)
def test_a_secret_is_refused_and_not_told(setting: str) -> None:
    loaded = load_config(None, overrides=[setting])
    told = "\n".join(map(str, check_config(loaded.config, loaded.origins)))
    assert "secret" in told
    assert "[command line]" in told
    assert SECRET not in told


@pytest.mark.parametrize("setting", HARMLESS)
def test_what_is_no_secret_is_taken(setting: str) -> None:
    loaded = load_config(None, overrides=[setting])
    assert not any("secret" in str(problem) for problem in check_config(loaded.config, loaded.origins))


def test_no_configuration_of_the_project_holds_one() -> None:
    for path in sorted((Path(__file__).parents[3] / "configs").glob("[cr]*/*.yaml")):
        loaded = load_config(None, profile=path) if path.parent.name == "clusters" else load_config(path)
        assert not any("secret" in str(problem) for problem in check_config(loaded.config, loaded.origins)), path
