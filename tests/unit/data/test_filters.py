"""Filtering: each rule removes what it says, the report counts it, and no private value leaves in a sample."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.corpus import StoppedError, make_prose, read_bytes, read_part, read_texts, show_nothing, stop_at
from toolkit.data.quality.filters import Filtering, filter_corpus, find_fault, measure_duplicate_runs, measure_top_run
from toolkit.data.quality.rules import (
    LanguageSection,
    LengthSection,
    PrivacySection,
    QualitySection,
    RepetitionSection,
    Rules,
    load_rules,
    to_dict,
)
from toolkit.data.quality.words import find_words
from toolkit.errors import DataError

PROSE = make_prose(1)
ENGLISH = (
    "The committee will meet again in the autumn to discuss what has been learned from the first year of the work, "
    "and members of the public who would like to attend have been asked to write to the secretary before that date. "
    "Most of the questions raised so far concern the cost of the new building and the time that it will take."
)
GERMAN = (
    "Der Ausschuss wird im Herbst erneut zusammenkommen, um zu besprechen, was aus dem ersten Jahr des Vorhabens "
    "gelernt wurde, und alle, die daran teilnehmen wollen, werden gebeten, sich vorher schriftlich anzumelden. Die "
    "meisten Fragen betreffen die Kosten des neuen Hauses und die Zeit, die bis zu seiner Fertigstellung vergehen wird."
)


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def run(out: Path, *inputs: Path, rules: Rules = Rules(), jobs: int = 1, on_error: str = "stop") -> dict[str, Any]:  # noqa: B008
    asked = Filtering(inputs=tuple(map(str, inputs)), rules=rules, on_error=on_error)
    return filter_corpus(asked, str(out), jobs=jobs, show=show_nothing)


BROKEN = {
    "length.min_words": "too short",
    "quality.min_mean_word": " ".join(["a", "b", "c", "d", "ox"] * 20),
    "quality.max_mean_word": " ".join(f"extraordinarily{place}long" for place in range(60)),
    "quality.max_symbols": PROSE.replace(" ", " # ", 40),
    "quality.max_bullet_lines": "\n".join(f"- {make_prose(seed, num_words=6)}" for seed in range(20)),
    "quality.max_ellipsis_lines": "\n".join(
        make_prose(seed, num_words=30) + ("..." if seed < 4 else "") for seed in range(10)
    ),
    "quality.min_alphabetic_words": PROSE + " 12345" * 60,
    "repetition.duplicate_lines": "\n".join([make_prose(1, num_words=60), *["ka lo"] * 3, make_prose(2, num_words=60)]),
    "repetition.duplicate_line_characters": "\n".join(
        [*[make_prose(seed, num_words=5) for seed in range(20)], *[make_prose(30, num_words=30)] * 3]
    ),
    "repetition.top_2_gram": " ".join(f"committee members {word}" for word in PROSE.split()),
    "repetition.duplicate_5_grams": make_prose(3, num_words=70) + " x y z " + make_prose(3, num_words=20),
}


@pytest.mark.parametrize(("rule", "text"), BROKEN.items(), ids=BROKEN.keys())
def test_a_document_is_removed_by_the_rule_that_it_breaks(rule: str, text: str) -> None:
    fault = find_fault(text, Rules())
    assert fault is not None
    assert fault.rule == rule


def test_good_prose_breaks_no_rule() -> None:
    assert [find_fault(make_prose(seed), Rules()) for seed in range(20)] == [None] * 20
    assert find_fault(ENGLISH, Rules(quality=QualitySection(min_stop_words=2))) is None


def test_length_can_be_asked_in_characters() -> None:
    rules = Rules(length=LengthSection(min_words=None, max_words=None, min_characters=100, max_characters=200))
    found = [find_fault(PROSE[:size], rules) for size in (99, 100, 200, 201)]
    assert [fault and fault.rule for fault in found] == ["length.min_characters", None, None, "length.max_characters"]


def test_chinese_prose_breaks_no_rule_for_unspaced_scripts() -> None:
    choice = random.Random(0)
    characters = [chr(code) for code in range(0x4E00, 0x4E00 + 800)]
    sentence = [choice.choice(characters) + ("\u3002" if place % 20 == 19 else "") for place in range(400)]
    path = Path(__file__).parents[3] / "configs" / "filters" / "unspaced.yaml"
    rules = load_rules(path, languages=["zh", "ja", "th"], regions=["US"])
    assert find_fault("".join(sentence), replace(rules, language=LanguageSection())) is None
    fault = find_fault("".join(sentence[:60] * 6), replace(rules, language=LanguageSection()))
    assert fault is not None
    assert fault.rule == "repetition.duplicate_5_grams"


def test_a_rule_without_a_value_is_off() -> None:
    rules = Rules(length=replace(Rules().length, min_words=None), quality=QualitySection(max_symbols=None))
    assert find_fault("too short", rules) is None
    assert find_fault(PROSE.replace(" ", " # ", 15), rules) is None
    assert find_fault(PROSE.replace(" ", " # ", 15), Rules()) is not None


def test_only_the_languages_asked_for_stay() -> None:
    rules = Rules(language=LanguageSection(keep=["en"]))
    assert find_fault(ENGLISH, rules) is None
    fault = find_fault(GERMAN, rules)
    assert fault is not None
    assert fault.rule == "language.keep"
    assert fault.found.startswith("de")
    assert find_fault(GERMAN, Rules(language=LanguageSection(keep=["de", "en"]))) is None


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["aa", "b", "ccc"]), min_size=1, max_size=40))
def test_runs_are_measured_as_a_plain_count_measures_them(spelled: list[str]) -> None:
    words = find_words(" ".join(spelled))
    total = sum(map(len, spelled))
    for length in range(2, 11):
        runs = [tuple(spelled[i : i + length]) for i in range(len(spelled) - length + 1)]
        counts = {run: runs.count(run) for run in runs}
        most = max(counts.values(), default=0)
        longest = max((sum(map(len, run)) for run in runs if counts[run] == most), default=0)
        part = most * longest / total if most > 1 else 0.0
        assert measure_top_run(words, length) == (pytest.approx(part), most)
        covered = {i + k for i, run in enumerate(runs) if run in runs[:i] for k in range(length)}
        expected = sum(len(spelled[i]) for i in covered) / total
        assert measure_duplicate_runs(words, length) == pytest.approx(expected)


ANY_QUALITY = QualitySection(
    min_mean_word=None, max_mean_word=None, max_symbols=None, max_bullet_lines=None, max_ellipsis_lines=None,
    min_alphabetic_words=None,
)  # fmt: skip
LOOSE = RepetitionSection(
    duplicate_lines=None, duplicate_paragraphs=None, duplicate_line_characters=None, duplicate_paragraph_characters=None
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(["aa", "b", "ccc", "dd", "eeeee"]), min_size=1, max_size=12),
    st.integers(0, 6),
    st.integers(0, 100),
)
@example(phrase=["abcde", "fghij", "klmno", "pqrst"], times=3, others=60)  # top_4_gram alone
def test_no_look_that_is_left_out_could_have_found_a_fault(phrase: list[str], times: int, others: int) -> None:
    spelled = [f"w{place:03d}" for place in range(others)]
    for place in range(times):
        spelled[place * 13 : place * 13] = phrase
    spelled = spelled or ["one"]
    words = find_words(" ".join(spelled))
    limits = to_dict(Rules(repetition=LOOSE))["repetition"]
    parts = {f"top_{length}_gram": measure_top_run(words, length)[0] for length in range(2, 5)}
    parts |= {f"duplicate_{length}_grams": measure_duplicate_runs(words, length) for length in range(5, 11)}
    broken = [f"repetition.{name}" for name, part in parts.items() if part > limits[name]]
    rules = Rules(length=LengthSection(min_words=None), quality=ANY_QUALITY, repetition=LOOSE)
    fault = find_fault(" ".join(spelled), rules)
    assert (fault.rule if fault else None) == (broken[0] if broken else None)


def test_kept_records_keep_their_fields_and_the_report_counts_by_rule(tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "a.jsonl",
        [
            {"text": f"{PROSE} Mail jo.doe@corp.io or al@corp.io.", "id": 7, "tags": ["x", None]},
            {"text": "too short", "id": 8},
            {"text": "", "id": 9},
            {"text": ENGLISH, "id": 10},
        ],
    )
    made = run(tmp_path / "out", corpus)
    assert read_part(tmp_path / "out" / "part-00000.jsonl.zst") == [
        {"text": f"{PROSE} Mail <EMAIL> or <EMAIL>.", "id": 7, "tags": ["x", None]},
        {"text": ENGLISH, "id": 10},
    ]
    totals = made["totals"]
    assert (totals["documents_read"], totals["documents_kept"]) == (3, 2)
    assert totals["removed"] == {"length.min_words": 1}
    assert totals["masked"] == {"email": 2}
    assert made == json.loads((tmp_path / "out" / "corpus.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "out.partial").exists()


def test_a_document_is_dropped_where_its_values_are_not_to_be_masked(tmp_path: Path) -> None:
    corpus = write(tmp_path / "a.jsonl", [{"text": f"{PROSE} jo@corp.io"}, {"text": ENGLISH}])
    made = run(tmp_path / "out", corpus, rules=Rules(privacy=PrivacySection(email="drop")))
    assert made["totals"]["removed"] == {"privacy.email": 1}
    assert made["totals"]["masked"] == {}
    assert read_texts(tmp_path / "out") == [[ENGLISH]]


@pytest.mark.parametrize("act", ["mask", "drop", "keep"])
def test_no_report_ever_holds_a_private_value(tmp_path: Path, act: Any) -> None:
    values = [
        "jo.doe@corp.io",
        "8.34.15.67",
        "4111 1111 1111 1111",
        "+44 20 7946 0018",
        "219-09-9999",
        "AKIA" + "A" * 16,
    ]
    texts = [f"{values[place % 6]} {PROSE} {values[(place + 1) % 6]}" for place in range(12)] + values
    corpus = write(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    rules = Rules(privacy=PrivacySection(email=act, ip=act, card=act, phone=act, national_id=act, key=act))
    run(tmp_path / "out", corpus, rules=rules)
    report = (tmp_path / "out" / "corpus.json").read_text(encoding="utf-8")
    assert [value for value in values if value in report] == []


def write_three(tmp_path: Path) -> list[Path]:
    return [
        write(tmp_path / f"{name}.jsonl", [{"text": make_prose(seed * 3 + k)} for k in range(4)] + [{"text": "short"}])
        for seed, name in enumerate("abc")
    ]


def test_the_result_does_not_depend_on_jobs(tmp_path: Path) -> None:
    names = write_three(tmp_path)
    run(tmp_path / "one", *names)
    run(tmp_path / "two", *names, jobs=2)
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "two")


def test_a_stopped_filtering_goes_on_with_the_inputs_that_are_left(tmp_path: Path) -> None:
    names = write_three(tmp_path)

    run(tmp_path / "one", *names)
    asked = Filtering(inputs=tuple(map(str, names)), rules=Rules())
    with pytest.raises(StoppedError):
        filter_corpus(asked, str(tmp_path / "three"), jobs=1, show=stop_at(2))
    assert not (tmp_path / "three").exists()
    first = (tmp_path / "three.partial" / "part-00000.jsonl.zst").stat().st_mtime_ns
    run(tmp_path / "three", *names)
    assert (tmp_path / "three" / "part-00000.jsonl.zst").stat().st_mtime_ns == first
    assert read_bytes(tmp_path / "one") == read_bytes(tmp_path / "three")


def test_broken_records_stop_or_are_counted_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": PROSE}).encode() + b"\n{broken\n\xff\xfe\n" + b'{"other": 1}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2 is no JSON"):
        run(tmp_path / "out", path)
    assert not (tmp_path / "out").exists()
    made = run(tmp_path / "skipped", path, on_error="skip")
    part = made["parts"][0]
    assert part["num_skipped"] == 3
    assert [line.split(" ")[0].rpartition(":")[2] for line in part["skipped"]] == ["2", "3", "4"]
    assert read_texts(tmp_path / "skipped") == [[PROSE]]
