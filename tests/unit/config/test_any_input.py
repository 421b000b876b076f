"""Whatever is given as a configuration is read, and then comes back from its dump, or is refused in a sentence."""

import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.config import load
from toolkit.config.load import Loaded, dump_config, load_config
from toolkit.config.schema import RunConfig
from toolkit.errors import ConfigError

KEYS = load._field_types(RunConfig)
BOUNDED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

ODD = st.sampled_from(
    ["~", "null", "", "1e5", " x ", "#", "a #b", ": ", "a: b", "None", "none", "yes", "0x1f", "1_000", "1:30",
     "2026-01-01", "-", "- a", "?", "!x", "!!binary eA==", "&a", "*a", "%x", "@x", "`x`", "'", '"', "\\", "a\nb",
     "\t", "\x00", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\ud800", "\uffff", "\U0010ffff", "日本", "é", "<<", "=",
     "[", "{", "[a, b]", "{a: 1}", ".nan", ".inf", "-.inf", "nan", "inf", "infinity", "NaN", "1e400", "-1e400",
     "9" * 400, "0" * 5000, "1e999999999", "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "-0.0",
     "-1", "0", "1", "0.9999999999999999", "1.0", "9223372036854775807", "9223372036854775808",
     "18446744073709551616", "$HOME", "${HOME}/x", "$$", "$", "$(touch x)", "~/x", "~root/x", "~nobody-here/x",
     "$NOT_SET_HERE", "hdfs://name/$$a", "file:///x", "a" * 300, "/" + "a/" * 3000, "30m", "2-00:00:00",
     "99999999999999d", "auto", "off", "local", "true", "e", "+", ".", "_", "1e", "--x", '"\\UFFFFFFFF"']
)  # fmt: skip
TEXT = ODD | st.text(max_size=30) | st.text(alphabet="$~{}%'\" \\a/:#&*!|>-\n\t[],0e.", max_size=20)
NUMBER = (
    st.integers(-(2**70), 2**70).map(str)
    | st.floats().map(repr)
    | st.sampled_from([10**17, 2**32 - 1, 2**32, 100_000, 65_535, 65_536]).map(str)
)
WORDS = st.sampled_from(sorted({word for kind in KEYS.values() for word in get_args(kind) if isinstance(word, str)}))
PLAIN: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def yaml_values(draw: st.DrawFn) -> str:
    """Write a value: bare, quoted, or a collection of them."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(TEXT)
    if kind == 1:
        return json.dumps(draw(TEXT))
    if kind == 2:
        return draw(NUMBER | WORDS)
    if kind == 3:
        return json.dumps(draw(st.lists(TEXT, max_size=3)))
    if kind == 4:
        keys = TEXT | st.sampled_from(["NAME", "gres", "gpu matmul", "a/b"])
        return json.dumps(draw(st.dictionaries(keys, TEXT | st.floats() | st.integers(), max_size=3)))
    return json.dumps(draw(PLAIN))


def take(path: Path | None, *overrides: str) -> Loaded | None:
    """Load; None: it was refused in sentences."""
    try:
        return load_config(path, overrides=overrides)
    except ConfigError:
        return None


def assert_comes_back(loaded: Loaded | None, tmp_path: Path) -> None:
    if loaded is not None:
        (tmp_path / "dump.yaml").write_text(dump_config(loaded.config), encoding="utf-8")
        assert load_config(tmp_path / "dump.yaml").config == loaded.config


@pytest.mark.parametrize("key", KEYS)
def test_a_value_comes_back_from_its_dump_or_was_refused(key: str, tmp_path: Path) -> None:
    @given(yaml_values())
    @settings(BOUNDED, max_examples=40)
    def hold(text: str) -> None:
        assert_comes_back(take(None, f"{key}={text}"), tmp_path)

    hold()


@BOUNDED
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_configuration_or_a_sentence(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.yaml"
    path.write_bytes(content)
    take(path)


@BOUNDED
@given(
    st.dictionaries(
        st.sampled_from(["base", "run", "data", "parallel", "cluster", "model"]) | TEXT,
        st.dictionaries(st.sampled_from([key.partition(".")[2] for key in KEYS]) | TEXT, PLAIN, max_size=4) | PLAIN,
        max_size=4,
    )
)
def test_any_sections_are_a_configuration_or_a_sentence(tmp_path_factory: Any, sections: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "sections.yaml"
    path.write_text(yaml.dump(sections, allow_unicode=False), encoding="utf-8")
    assert_comes_back(take(path), tmp_path_factory.getbasetemp())


SYNTAX = st.sampled_from(
    ["run", "data", ": ", "\n", "  ", "- ", "? ", "[", "]", "{", "}", ", ", "&a ", "*a", "!!python/name:x ", "!x ", "|",
     ">", "'", '"', "\\x", "#", "%YAML 1.1", "---", "...", "a", "<<", "\t", "~", "9"]
)  # fmt: skip


@BOUNDED
@given(st.lists(SYNTAX, max_size=40).map("".join))
def test_any_syntax_is_a_configuration_or_a_sentence(tmp_path_factory: Any, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "syntax.yaml"
    path.write_text(text, encoding="utf-8")
    take(path, f"parallel.deepspeed_extra={text}")


BOMB = "parallel:\n  deepspeed_extra:\n    a: &a0 [1]\n" + "".join(
    f"    b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (b"run:\n  name: \xff\n", "not UTF-8", 2),
        (b"\x7fELF\x02\x01\x01\x00", "not YAML: the character U+007F", 1),
        (b"run:\n  name: a\x00b\n", "not YAML: the character U+0000", 2),
        (b'run:\n  name: "a\\0b"\n', "control character (U+0000)", 2),
        (b"run:\n  ? [a, b]\n  : c\n", "a list or mapping stands as a key", 2),
        (b"run:\n  name: !!python/object/apply:os.system [id]\n", "a YAML tag", 2),
        (b"parallel:\n  deepspeed_extra: {a: !!python/name:os.system }\n", "a YAML tag", 2),
        (b"parallel:\n  deepspeed_extra: &x {a: *x}\n", "inside itself", 2),
        (b"run: &x\n  name: *x\n", "inside itself", 1),
        (BOMB.encode(), "more than 100,000 values", 3),
        (b"run: " + b"[" * 5000, "inside each other", 1),
        (b"- " * 5000, "inside each other", 1),
        (b"#" * (300 << 10), "more than 256 KiB", 1),
        (b'run: {name: "\\UFFFFFFFF"}', "not YAML", 1),
        (b"%YAML " + b"1" * 5000 + b".1\n--- {}\n", "not YAML", 1),
        (b"run:\n  tokens: .nan\n", "no finite number", 2),
        (b"run:\n  tokens: " + b"9" * 400, "too large", 2),
        (b"optim:\n  eps: 1e400\n", "too large", 2),
        (b"optim:\n  beta1: 1.0\n", "1.0 is not below 1", 2),
        (b"data:\n  mixture: {a: .inf}\n", "no finite number", 2),
        (b"health:\n  limits: {clock: .nan}\n", "no finite number", 2),
        (b"parallel:\n  deepspeed_extra: {a: [.nan]}\n", "no finite number", 2),
        (b"cluster:\n  nodes: 999999999999999999999\n", "too large", 2),
        (b"model:\n  num_hidden_layers: 1e8\n", "more than 10000", 2),
        (b"run:\n  root: hdfs://name/runs\n", "is a URL", 2),
        (b"run:\n  root: $NOT_SET_HERE/runs\n", "not set in this shell", 2),
        (b"data:\n  path: ~nobody-here/x\n", "no such user", 2),
        (b"data:\n  cache_dir: /x/$SLURM_JOB_ID\n", "each node and job has its own", 2),
        (b"data:\n  path: " + b"a" * 300, "names of 255 bytes", 2),
        (b"cluster:\n  env: {1A: x}\n", "no digit first", 2),
        (b'cluster:\n  env: {"A; touch x": x}\n', "a variable's name", 2),
        (b"cluster:\n  partition: a b\n", "no blanks", 2),
        (b'cluster:\n  account: "a\\n#SBATCH --x"\n', "control character (U+000A)", 2),
        (b'cluster:\n  sbatch_extra: {"x\\ny": z}\n', "control character (U+000A)", 2),
        (b"cluster:\n  sbatch_extra: {--gres: z}\n", "without dashes", 2),
        (b"cluster:\n  mem_per_node: lots\n", "Slurm writes memory as", 2),
        (b"base: [[a]]\n", "one value is wanted", 1),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_with_file_and_line(
    content: bytes, message: str, line: int, tmp_path: Path
) -> None:
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "odd.yaml")
    assert message in str(caught.value)
    assert f"{tmp_path}/odd.yaml:{line}]" in str(caught.value)


def test_a_date_and_the_like_in_deepspeed_extra_are_text_that_json_can_hold() -> None:
    given_values = "{a: 2026-01-01, b: 1:30, c: 1e-5, d: 1_000, e: yes, f: 0o17, g: null, h: '1'}"
    loaded = load_config(None, overrides=[f"parallel.deepspeed_extra={given_values}"])
    expected = {"a": "2026-01-01", "b": "1:30", "c": 1e-5, "d": 1000, "e": True, "f": "0o17", "g": None, "h": "1"}
    assert loaded.config.parallel.deepspeed_extra == expected
    assert json.loads(json.dumps(expected)) == expected


@pytest.mark.parametrize("depth", range(34, 42))
def test_what_is_nested_as_deeply_as_it_may_be_comes_back(depth: int, tmp_path: Path) -> None:
    loaded = take(None, f"parallel.deepspeed_extra={{a: {'[' * depth}{']' * depth}}}")
    assert (loaded is not None) == (depth <= 37)
    assert_comes_back(loaded, tmp_path)


@pytest.mark.parametrize("letter", ["a", "\ufeff"])
def test_what_is_as_large_as_it_may_be_comes_back(letter: str, tmp_path: Path) -> None:
    (tmp_path / "large.yaml").write_text(f"cluster:\n  env: {{A: '{letter * 80_000}'}}\n", encoding="utf-8")
    loaded = take(tmp_path / "large.yaml")
    assert (loaded is not None) == (letter == "a")
    assert_comes_back(loaded, tmp_path)


def test_a_base_that_is_no_file_of_its_own_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "me.yaml").symlink_to("a.yaml")
    asked = {"pipe": "no regular file", "loop": "cannot be read", "me.yaml": "own base", ".": "no regular file",
             "/dev/zero": "no regular file", "missing": "cannot be read", '"a\\0b"': "control character"}  # fmt: skip
    for base, message in asked.items():
        (tmp_path / "a.yaml").write_text(f"base: [{base}]\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=message):
            load_config(tmp_path / "a.yaml")


def test_bases_that_multiply_are_not_all_read(tmp_path: Path) -> None:
    for number in range(12):
        text = f"base: [{', '.join([f'{number + 1}.yaml'] * 9)}]\n"
        (tmp_path / f"{number}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="more than 100 files"):
        load_config(tmp_path / "0.yaml")


def test_paths_are_those_of_the_shell_that_submits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home$a")
    monkeypatch.setenv("USER", "me")
    asked = ["run.root=~/runs", "data.mixture={$USER/a: 1, 'hdfs://n/${USER}/~/b': 1}", "data.source=[~/x, a/~]",
             "checkpoint.dir=/c$$x/$USER", "data.tokenizer=~", "data.cache_dir=/scratch/$USER"]  # fmt: skip
    loaded = load_config(None, overrides=asked)
    cfg = loaded.config
    assert cfg.run.root == "/home$a/runs"
    assert list(cfg.data.mixture) == ["me/a", "hdfs://n/me/~/b"]
    assert cfg.data.source == ["/home$a/x", "a/~"]
    assert (cfg.checkpoint.dir, cfg.data.tokenizer, cfg.data.cache_dir) == ("/c$x/me", None, "/scratch/me")
    monkeypatch.setenv("HOME", "/elsewhere")
    monkeypatch.delenv("USER")
    assert_comes_back(loaded, tmp_path)  # what was written out does not change on a node


def test_lines_of_a_block_are_lines_of_the_setup(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("cluster:\n  setup: |\n    module load a\n\n    export B=1\n", encoding="utf-8")
    assert load_config(tmp_path / "a.yaml").config.cluster.setup == ["module load a", "export B=1"]
