"""Filter files: the default says what the code says, and mistakes are named with file, line and suggestion."""

from pathlib import Path

import pytest

from toolkit.data.quality.rules import Rules, from_dict, load_rules, to_dict
from toolkit.errors import ConfigError

FILTERS = Path(__file__).parents[3] / "configs" / "filters"
KNOWN = {"languages": ["de", "en", "ja", "th", "zh"], "regions": ["GB", "US"]}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_default_file_spells_out_every_rule() -> None:
    assert load_rules(FILTERS / "default.yaml", **KNOWN) == Rules()
    text = (FILTERS / "default.yaml").read_text(encoding="utf-8")
    for section, fields in to_dict(Rules()).items():
        assert f"{section}:" in text
        assert all(f"  {name}:" in text for name in fields)


def test_the_example_builds_on_the_default() -> None:
    rules = load_rules(FILTERS / "english-web.yaml", **KNOWN)
    assert (rules.language.keep, rules.quality.min_stop_words, rules.privacy.key) == (["en"], 2, "drop")
    assert rules.repetition == Rules().repetition


def test_the_rules_for_unspaced_scripts_ask_no_words() -> None:
    rules = load_rules(FILTERS / "unspaced.yaml", **KNOWN)
    assert (rules.length.min_words, rules.length.min_characters, rules.quality.max_mean_word) == (None, 100, None)
    assert rules.quality.max_bullet_lines == Rules().quality.max_bullet_lines


def test_rules_survive_the_way_through_json() -> None:
    rules = load_rules(FILTERS / "english-web.yaml", **KNOWN)
    assert from_dict(to_dict(rules)) == rules


def test_every_mistake_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "length:\n  min_wrods: 5\nrepetition:\n  duplicate_lines: 3\nprivacy: {email: hide}\n")
    with pytest.raises(ConfigError) as caught:
        load_rules(path, **KNOWN)
    text = str(caught.value)
    assert f"unknown key length.min_wrods  [{path}:2]" in text
    assert "did you mean length.min_words?" in text
    assert f"repetition.duplicate_lines: 3.0 is more than 1  [{path}:4]" in text
    assert f"privacy.email: 'hide' is none of mask, drop, keep  [{path}:5]" in text


def test_an_unknown_section_is_told_the_sections(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are: language, length, privacy, quality, repetition"):
        load_rules(write(tmp_path, "zzz: {a: 1}\n"), **KNOWN)


def test_codes_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "language: {keep: [en, english]}\nprivacy: {phone_regions: [UK]}\nlength: {max_words: 3}\n")
    with pytest.raises(ConfigError) as caught:
        load_rules(path, **KNOWN)
    assert "language.keep has unknown codes: english" in str(caught.value)
    assert "privacy.phone_regions has unknown codes: UK" in str(caught.value)
    assert "length.min_words=50 is more than length.max_words=3" in str(caught.value)
