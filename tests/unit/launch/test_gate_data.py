"""The gate's look at the tokens of a run."""

import os
from pathlib import Path

import pytest

from tests import tokenizers as kinds
from tests.dataset import make_dataset, make_texts, write_jsonl
from tests.gate import make_context, only, verdicts
from toolkit.checkpoint.layout import MARK_NAME, step_dir
from toolkit.config.load import dump_config
from toolkit.launch.gate.data import check_data
from toolkit.launch.prepare import name_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"))[0]


def test_a_whole_dataset_is_well_and_tells_the_epochs(tmp_path: Path, dataset: Path) -> None:
    found = check_data(make_context(tmp_path, f"data.path={dataset}"))
    assert verdicts(found) == {"shards": "ok", "tokenizer": "ok", "horizon": "ok"}
    assert "20,480 tokens are 1.7" in only(found, "horizon").what


def test_many_epochs_are_warned_of_with_the_source(tmp_path: Path, dataset: Path) -> None:
    found = only(check_data(make_context(tmp_path, f"data.path={dataset}", "run.tokens=61_440")), "horizon")
    assert found.verdict.value == "warning"
    assert "5.1" in found.what
    assert "2305.16264" in found.reason


def test_a_shard_that_is_cut_off_a_small_vocabulary_and_a_short_split_are_all_told(tmp_path: Path) -> None:
    dataset, manifest = make_dataset(tmp_path)
    shard = dataset / manifest.splits["train"][0].path
    os.truncate(shard, shard.stat().st_size - 1)
    asked = (f"data.path={dataset}", "model.vocab_size=256", "data.seq_len=65_536", "batch.tokens_per_step=65_536")
    found = check_data(make_context(tmp_path, *asked))
    assert verdicts(found) == {"shards": "refused", "tokenizer": "refused", "horizon": "refused"}
    assert str(shard) in only(found, "shards").what
    assert only(found, "tokenizer").remedy == "set model.vocab_size=320"


def test_a_dataset_that_is_not_there_is_refused(tmp_path: Path) -> None:
    found = check_data(make_context(tmp_path, f"data.path={tmp_path}/nothing"))
    assert verdicts(found) == {"shards": "refused"}
    assert "does not exist" in found[0].what


def test_text_that_is_made_into_tokens_first_is_looked_for(tmp_path: Path, dataset: Path) -> None:
    source = dataset.parent / "corpus.jsonl"
    asked = (f"data.path={tmp_path}/out", f"data.source={source}", f"data.tokenizer={dataset.parent}/tokenizer.json")
    found = check_data(make_context(tmp_path, *asked))
    assert verdicts(found) == {"shards": "ok", "tokenizer": "ok", "horizon": "note"}
    gone = check_data(make_context(tmp_path, *asked, f"data.source={tmp_path}/none"))
    assert verdicts(gone) == {"shards": "refused"}


def test_a_field_that_no_record_has_is_refused_with_those_there_are(tmp_path: Path, dataset: Path) -> None:
    asked = (f"data.path={tmp_path}/out", f"data.tokenizer={dataset.parent}/tokenizer.json", "data.column=body")
    found = only(check_data(make_context(tmp_path, *asked, f"data.source={dataset.parent}/corpus.jsonl")), "shards")
    assert found.verdict.value == "refused"
    assert "has no text in field 'body'; it has: text" in found.what
    assert "data.column" in found.remedy


def test_the_end_of_a_text_is_asked_for_at_submission_and_can_be_named(tmp_path: Path) -> None:
    folder = kinds.save(kinds.byte_level(control=["<eos>", "</s>"]), tmp_path / "t")
    source = write_jsonl(tmp_path / "c.jsonl", make_texts())
    asked = [f"data.path={tmp_path}/out", f"data.source={source}", f"data.tokenizer={folder}", "model.vocab_size=400"]
    [found] = check_data(make_context(tmp_path, *asked))
    assert found.what.startswith("</s> and <eos> of tokenizer")
    assert verdicts(check_data(make_context(tmp_path, *asked, "data.eos=<eos>")))["tokenizer"] == "ok"
    assert name_dataset(make_context(tmp_path, *asked, "data.eos=<eos>").cfg.data) != name_dataset(
        make_context(tmp_path, *asked, "data.eos=</s>").cfg.data
    )


def test_a_learning_rate_that_would_jump_is_said(dataset: Path, tmp_path: Path) -> None:
    def horizon(*settings: str) -> str:
        found = check_data(make_context(tmp_path, f"data.path={dataset}", "optim.warmup_tokens=0", *settings))
        return " ".join(one.what for one in found if one.check == "horizon" and "learning rate" in one.what)

    context = make_context(tmp_path, f"data.path={dataset}", "optim.warmup_tokens=0", "run.tokens=102400")
    run_dir, steps = context.run_dir, context.cfg.num_steps
    checkpoint = step_dir(run_dir.checkpoints_dir, step=steps)
    checkpoint.mkdir(parents=True)
    (checkpoint / MARK_NAME).write_text("", encoding="utf-8")
    run_dir.config_path.write_text(dump_config(context.cfg), encoding="utf-8")
    assert horizon("run.tokens=102400") == ""
    said = horizon("run.tokens=204800")
    assert said.startswith("the learning rate jumps from ")
    assert said.endswith(f"at step {steps + 1}, where the run goes on")
    assert "jumps" in horizon("run.tokens=102400", "optim.peak_lr=1e-5")
