"""The words of a filter file: what removes a document, and what is masked in one."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from toolkit.config.kinds import Count, Fraction, Natural, Range
from toolkit.config.load import load_sections
from toolkit.errors import ConfigError, Problem

Act = Literal["mask", "drop", "keep"]
Length = Annotated[float, Range(0.0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthSection:
    """How long a document is. Source: Rae et al. 2021, arXiv:2112.11446, section A1.1."""

    min_words: Natural | None = 50
    """Fewest words between spaces. None: no rule (so everywhere below)."""
    max_words: Count | None = 100_000
    """Most words."""
    min_characters: Natural | None = None
    """Fewest characters: for scripts without spaces."""
    max_characters: Count | None = None
    """Most characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageSection:
    """Which languages stay."""

    keep: list[str] = field(default_factory=list)
    """ISO 639-1 codes (en, de, zh; 639-2 where there is none). Empty: all languages, none is looked for."""
    min_confidence: Fraction = 0.5
    """Least probability of the language found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualitySection:
    """What prose looks like. Source: Rae et al. 2021, section A1.1."""

    min_mean_word: Length | None = 3.0
    """Least mean length of words, in characters."""
    max_mean_word: Length | None = 10.0
    """Largest mean length of words."""
    max_symbols: Fraction | None = 0.1
    """Most hash marks, and most ellipses, a word."""
    max_bullet_lines: Fraction | None = 0.9
    """Largest part of lines that begin with a bullet."""
    max_ellipsis_lines: Fraction | None = 0.3
    """Largest part of lines that end with an ellipsis."""
    min_alphabetic_words: Fraction | None = 0.8
    """Least part of words with a letter in them."""
    min_stop_words: Natural | None = None
    """Fewest of `the be to of and that have with` in a document. For English: 2."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RepetitionSection:
    """How much of a document repeats itself: parts beyond which it is removed. Source: Rae et al. 2021, table A1."""

    duplicate_lines: Fraction | None = 0.30
    """Lines that were there before."""
    duplicate_paragraphs: Fraction | None = 0.30
    """Paragraphs that were there before."""
    duplicate_line_characters: Fraction | None = 0.20
    """Characters in such lines."""
    duplicate_paragraph_characters: Fraction | None = 0.20
    """Characters in such paragraphs."""
    top_2_gram: Fraction | None = 0.20
    """Characters in the most frequent run of two words."""
    top_3_gram: Fraction | None = 0.18
    """The same of three words."""
    top_4_gram: Fraction | None = 0.16
    """The same of four words."""
    duplicate_5_grams: Fraction | None = 0.15
    """Characters in runs of five words that were there before, each counted once."""
    duplicate_6_grams: Fraction | None = 0.14
    """The same of six words."""
    duplicate_7_grams: Fraction | None = 0.13
    """The same of seven words."""
    duplicate_8_grams: Fraction | None = 0.12
    """The same of eight words."""
    duplicate_9_grams: Fraction | None = 0.11
    """The same of nine words."""
    duplicate_10_grams: Fraction | None = 0.10
    """The same of ten words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacySection:
    """What becomes of private values.

    `mask` writes <KIND> in their place, `drop` removes the document, `keep` does not look for them.
    """

    key: Act = "mask"
    """Keys and tokens of services with a known beginning, JSON web tokens, private keys."""
    email: Act = "mask"
    """E-mail addresses, but for domains reserved for examples."""
    iban: Act = "mask"
    """Bank account numbers that their check digits prove."""
    card: Act = "mask"
    """Payment cards: a network's range, and the check digit."""
    national_id: Act = "mask"
    """Identity numbers of US, ES, IT, PL, FR, CN, BR that their check digits (US: ranges) prove."""
    ip: Act = "mask"
    """Public IPv4 and IPv6 addresses."""
    phone: Act = "mask"
    """Phone numbers that the number plan of their country knows."""
    phone_regions: list[str] = field(default_factory=lambda: ["US"])
    """Countries (ISO 3166) whose numbers are also found without their +CODE. Empty: only with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """Everything a filter is told, in sections; they are asked in this order, and the first that fails removes."""

    length: LengthSection = field(default_factory=LengthSection)
    quality: QualitySection = field(default_factory=QualitySection)
    repetition: RepetitionSection = field(default_factory=RepetitionSection)
    language: LanguageSection = field(default_factory=LanguageSection)
    privacy: PrivacySection = field(default_factory=PrivacySection)


def load_rules(path: Path, *, languages: list[str], regions: list[str]) -> Rules:
    """Read a filter file.

    Args:
        path: the file.
        languages: codes that can be told apart.
        regions: countries whose number plan is known.

    Raises:
        ConfigError: with all mistakes; unknown keys with file, line and suggestion.
    """
    rules = load_sections(path, Rules)
    problems = []
    for key, given, known in (
        ("language.keep", rules.language.keep, languages),
        ("privacy.phone_regions", rules.privacy.phone_regions, regions),
    ):
        unknown = sorted(set(given) - set(known))
        if unknown:
            problems.append(
                Problem(f"{key} has unknown codes: {', '.join(unknown)}  [{path}]", f"there are: {' '.join(known)}", "")
            )
    for unit in ("words", "characters"):
        low, high = (getattr(rules.length, f"{end}_{unit}") for end in ("min", "max"))
        if low is not None and high is not None and low > high:
            what = f"length.min_{unit}={low} is more than length.max_{unit}={high}  [{path}]"
            problems.append(Problem(what, "nothing would be kept", "raise one or lower the other"))
    if problems:
        raise ConfigError(problems)
    return rules


def to_dict(rules: Rules) -> dict[str, dict[str, Any]]:
    """Turn rules into nested dictionaries, as `from_dict` reads them."""
    return asdict(rules)


def from_dict(sections: dict[str, dict[str, Any]]) -> Rules:
    """Turn back what `to_dict` gave."""
    kinds = get_type_hints(Rules)
    return Rules(**{name: kinds[name](**fields) for name, fields in sections.items()})
