"""Secrets of every kind are taken out of text, and ordinary text stays as it is."""

import json
import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.config.schema import RunConfig, to_dict
from toolkit.redact import HIDDEN, is_secret, is_secret_name, redact, redact_values

SECRET = "Zq7canaryPw9"
LONG = SECRET * 2

HOLDING = [
    f"https://user:{SECRET}@host/x",
    f"hdfs://user:{SECRET}@nn:8020/data",
    f"postgres://user:{SECRET}%40x@[::1]:5432/db",
    f"redis://:{SECRET}@host",
    f"ssh://git:{SECRET}@host/r.git",
    f"http://user:p@{SECRET}@host/x",
    f"https://user:a/{SECRET}@host/",
    f"https://{LONG}@github.com/x",
    f"https://b.s3.amazonaws.com/k?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}&x=1",
    f"https://account.blob.core.windows.net/b?sv=1&sig={SECRET}",
    f"https://host/x?access_token={SECRET}",
    f"https://host/x?AWSAccessKeyId={SECRET}&Signature={SECRET}",
    f"SharedAccessSignature={SECRET}",
    f"AccountKey={SECRET};x",
    f"Server=x;Pwd={SECRET};Y=1",
    f"Authorization: Bearer {SECRET}",
    json.dumps({"Authorization": f"Basic {SECRET}=="}),
    f"curl -H 'Authorization: token {SECRET}'",
    f"bearer {LONG}",
    f"hf_{LONG}",
    f"ghp_{LONG}",
    f"github_pat_{SECRET}_{SECRET}",
    f"glpat-{LONG}",
    f"sk-proj-{LONG}",
    f"xoxb-123-{SECRET}",
    f"AIza{LONG}{SECRET[:11]}",
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIx.{SECRET}",
    f"-----BEGIN RSA PRIVATE KEY-----\nDEK-Info: AES-1,2\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"-----BEGIN PRIVATE KEY-----\\n{SECRET}",
    f"PGPASS={SECRET}",
    f"MY_PW={SECRET}",
    f"DB_PWD: {SECRET}",
    f"REDIS_AUTH={SECRET}",
    f"SENTRY_DSN={SECRET}",
    f"password: {SECRET}",
    f"client_secret={SECRET}",
    f"apiKey: '{SECRET}'",
    f"{{'secret_key': '{SECRET}'}}",
    f"AWS_SECRET_ACCESS_KEY=/{SECRET}/x",
    f"export HF_TOKEN='{SECRET} x'",
    f'"WANDB_API_KEY": "{SECRET}"',
    json.dumps(json.dumps({"password": SECRET})),
    f'msg="password={SECRET} or"',
    f'os.environ["HF_TOKEN"] = "{SECRET}"',
    f'PASSWORD="a\'{SECRET}"',
    f'PASSWORD="a\\"{SECRET}"',
    f'PASSWORD="{SECRET}',
    f"CONNECTION_STRING='Server=x;{SECRET}'",
    f"ALL,HF_TOKEN={SECRET},B=2",
    f"--token {SECRET}",
    f"--token={SECRET}",
    f"mc --password '{SECRET}'",
    f"wandb login --relogin {LONG}",
    f"huggingface-cli login --token {SECRET}",
    f"docker login -u me -p {SECRET} registry",
    f"pip install --index-url https://u:{SECRET}@pypi/simple x",
    f"curl -u user:{SECRET} https://x",
    f"sshpass -p {SECRET} ssh host",
    f"mysql -u me -p{SECRET} db",
    f"setenv HF_TOKEN {SECRET}",
    f"machine api.wandb.ai login user password {SECRET}",
    f"https%3A%2F%2Fme%3A{SECRET}%40host",
    f"echo {SECRET} | docker login -u me --password-stdin",
    f"Command '['hf', '--token', '{SECRET}']' returned 1",
    f"[('HF_TOKEN', '{SECRET}')]",
    f"OPENAI_KEY={SECRET} GH_PAT={SECRET}",
]

ORDINARY = [
    "data.tokenizer=tok.json",
    "batch.tokens_per_step=16384 run.tokens=5000000",
    "run.tokens: 5000000",
    "eos_token='</s>' pad_token_id=0 mask_token='[MASK]'",
    "eos_token: <|end|>",
    "TOKENIZERS_PARALLELISM=false",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN=1",
    "HF_TOKEN=$(cat ~/.token)",
    "HF_TOKEN_PATH=/x/y",
    "export T=$HF_TOKEN HF_TOKEN=$T",
    "http://host:8080/path@v1",
    "http://[::1]:8080/a@b",
    "hdfs://nn:8020/d",
    "git@github.com:x/y.git",
    "s3://bucket/key=1/x",
    "PWD=/data OLDPWD=/x COMPASS=north BYPASS=x1 PASSENGER=abc1",
    "pass_env: ['NCCL_*']",
    "forward_pass=12.5ms",
    "unexpected token: foo",
    "GOOGLE_APPLICATION_CREDENTIALS=/etc/x.json SSH_AUTH_SOCK=/tmp/x",
    "type: wandb login, on a node that reaches the internet",
    "step 1200/50000 | loss 2.413 | lr 3.0e-04 | 812k tok/s",
    "2026-01-31 12:00:00 INFO    node1 r0 s120 | saved x",
    "token_type_ids=[0] num_key_value_heads: 4 cache_key=abc123",
    "a bearer of news",
    "sk-learn-is-a-nice-library-of-ml",
    "https://x/y?page=2&sort=name",
    "commit 74bb8f2a74bb8f2a74bb8f2a74bb8f2a74bb8f2a",
    "password: null",
    "columns ['token', 'text', 'password', 'label']",
    "echo done | tee log",
    "use_auth_token=False max_tokens=12",
]


@pytest.mark.parametrize("text", HOLDING)
def test_a_secret_is_hidden_whatever_is_around_it(text: str) -> None:
    for around in (text, f"error: {text}, and more", f"first line\n{text}\nlast line", f"x={text}"):
        hidden = redact(around)
        assert SECRET not in hidden
        assert HIDDEN in hidden
        assert redact(hidden) == hidden


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_stays(text: str) -> None:
    assert redact(text) == text


def test_no_key_of_the_configuration_is_taken_for_a_secret() -> None:
    for section, fields in to_dict(RunConfig()).items():
        assert [key for key in fields if is_secret_name(f"{section}.{key}")] == []


def test_values_below_a_secret_name_are_hidden() -> None:
    values = {
        "api_key": SECRET,
        "list": [f"ftp://u:{SECRET}@h"],
        "n": 3,
        f"ftp://u:{SECRET}@h": 1.0,
        "eos_token": "</s>",
    }
    hidden = redact_values(values)
    assert SECRET not in json.dumps(hidden)
    assert hidden["n"] == 3
    assert hidden["eos_token"] == "</s>"


WORDS = st.text(string.ascii_letters + string.digits, min_size=1, max_size=12)
SECRETS = st.text(string.ascii_letters + string.digits + "-_.~!*+%", min_size=9, max_size=30).map(
    lambda text: f"k7{text}"
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(secret=SECRETS, scheme=st.sampled_from(["https", "hdfs", "ssh", "s3", "git+https"]), user=WORDS, tail=WORDS)
def test_no_password_of_a_url_is_left(secret: str, scheme: str, user: str, tail: str) -> None:
    assert redact(f"{tail} {scheme}://{user}:{secret}@{tail}/x y") == f"{tail} {scheme}://{user}:{HIDDEN}@{tail}/x y"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    secret=SECRETS,
    name=st.sampled_from(["PGPASS", "MY_PW", "API_KEY", "HF_TOKEN", "DB_PASSWORD", "client_secret", "PRIVATE_KEY"]),
    form=st.sampled_from(
        ["{}={}", "{}: {}", '"{}": "{}"', "'{}': '{}'", "export {}={} ", "--{} {}", "{}='{}'", "a,{}={}"]
    ),
)
def test_no_value_of_a_secret_name_is_left(secret: str, name: str, form: str) -> None:
    assert secret not in redact(form.format(name, secret))


PIECES = [*"ab1 .:=@/?&\"'\\-_;,{}\n", "token", "PASSWORD", "https://", "***", "KEY", "Bearer ", "k7" * 12]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_what_is_hidden_stays_as_it_is(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(WORDS, max_size=20))
def test_words_stay(words: list[str]) -> None:
    text = " ".join(word for word in words if not is_secret_name(word))
    assert redact(text) == text


@pytest.mark.parametrize(
    "part",
    ["a", "a-", "token=", 'token="', "https://a:", "://", "curl -u ", "docker login ", "wandb login --a ", "?a=", "\\",
     "-----BEGIN PRIVATE KEY-----", "eyJaaaaaaaa.", "sk-", "--token ", "x='token=\"", "a:b@", " "],
)  # fmt: skip
def test_the_time_grows_with_the_text_only(part: str) -> None:
    def measure(num_bytes: int) -> float:
        text = part * (num_bytes // len(part))
        times = []
        for _ in range(2):
            started = time.process_time()
            redact(text)
            times.append(time.process_time() - started)
        return min(times)

    assert measure(80_000) < 40 * max(measure(8_000), 1e-3)  # 100 if it were quadratic


def test_a_path_to_a_secret_is_none() -> None:
    assert not is_secret("GOOGLE_APPLICATION_CREDENTIALS", "/etc/key.json")
    assert is_secret("AWS_SECRET_ACCESS_KEY", "/x/y")
