"""Documents in, good documents out: length, quality, repetition and language rules, private values masked.

Every rule is a key of the filter file, and the report counts by that key.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.data.prepare.alone import hold_out
from toolkit.data.prepare.workers import Report
from toolkit.data.quality import privacy
from toolkit.data.quality.corpus import Show, Work, finish, missing_parts, open_work, read_input, run_parts
from toolkit.data.quality.language import find_language
from toolkit.data.quality.parts import Part, Tally, open_part
from toolkit.data.quality.rules import LengthSection, QualitySection, RepetitionSection, Rules, from_dict, to_dict
from toolkit.data.quality.words import Hashes, Words, find_words, hash_runs
from toolkit.data.text.records import Skipped
from toolkit.data.text.sources import find_inputs

_STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
_BULLETS = ("\u2022", "\u2023", "\u25cf", "\u25e6", "*", "-")
_ELLIPSES = ("...", "\u2026")
_LETTER = re.compile(r"[^\W\d_]")
_AROUND = 40  # characters of a sample on each side of what was masked
_DUPLICATE_RUNS = range(5, 11)
_TOP_RUNS = range(2, 5)


@dataclass(frozen=True, slots=True)
class Fault:
    """The rule that removes a document (a key of the filter file), and the figure that it found."""

    rule: str
    found: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Filtering:
    """What is asked for; two equal ones give byte-identical corpora."""

    inputs: tuple[str, ...]
    rules: Rules
    column: str = "text"
    on_error: str = "stop"
    """`stop` at a record that cannot be read, or `skip` it: counted and listed."""


def filter_corpus(asked: Filtering, out: str, *, jobs: int, show: Show) -> dict[str, Any]:
    """Filter a corpus, or go on where a killed filtering stopped, or find that it is there already.

    Args:
        asked: inputs and rules.
        out: directory or URL of the corpus to make.
        jobs: processes, each at one input.
        show: shows progress.

    Returns:
        The content of corpus.json.

    Raises:
        DataError: bad input, or another corpus stands there.
        HeldError: somebody else is making it.
        StorageError: it cannot be written.
    """
    engines = {name: version(name) for name in ("py3langid", "phonenumberslite", "zstandard")}
    settings = {
        "rules": to_dict(asked.rules), "column": asked.column, "on_error": asked.on_error, "engines": engines,
    }  # fmt: skip
    with hold_out(out, what=f"{out} is being made"):
        work, finished = open_work(out, act="filter", asked=settings, inputs=find_inputs(list(asked.inputs)))
        if finished is not None:
            return finished
        total = work.num_bytes()
        with show("filtering", total_bytes=total, done_bytes=total - work.num_bytes(missing_parts(work))) as report:
            parts = run_parts(work, filter_part, jobs=jobs, report=report)
        return finish(work, parts, extra={})


def filter_part(work: Work, index: int, report: Report) -> Part:
    """Filter one input into its part."""
    rules = from_dict(work.asked["rules"])
    column = work.asked["column"]
    skipped = Skipped()
    tally = Tally()
    with open_part(work.part_url(index), beside=work.beside_url(index)) as writer:
        for record in read_input(work, index, skipped=skipped, report=report):
            text = _judge(record.fields[column], record.origin, rules, tally)
            if text is not None:
                writer.write({**record.fields, column: text})
        checksum = writer.close()
    return tally.close(
        work.part_name(index), num_bytes=writer.num_bytes, xxh3=checksum,
        num_skipped=skipped.count, skipped=skipped.reasons,
    )  # fmt: skip


def _judge(text: str, origin: str, rules: Rules, tally: Tally) -> str | None:
    """Give a document's text as it stays, or None; count either."""
    fault = find_fault(text, rules)
    acts = asdict(rules.privacy)
    regions = tuple(rules.privacy.phone_regions)
    if fault is None:
        wanted = [kind for kind in privacy.KINDS if acts[kind] != "keep"]
        masked, counts = privacy.mask(text, kinds=wanted, phone_regions=regions)
        dropping = next((kind for kind in counts if acts[kind] == "drop"), None)
        if dropping is None:
            tally.keep(text, masked)
            tally.masked.update(counts)
            for kind in filter(tally.wants_sample, counts):
                tally.add_sample(kind, f"{origin}: {_around(_mask_all(masked, regions), privacy.token(kind))}")
            return masked
        fault = Fault(f"privacy.{dropping}", str(counts[dropping]))
    tally.remove(text, fault.rule)
    if tally.wants_sample(fault.rule):
        shown = _mask_all(text, regions)
        tally.add_sample(fault.rule, f"{origin}: {fault.found}: {_around(shown, '')}")
    return None


def find_fault(text: str, rules: Rules) -> Fault | None:
    """Find the first rule that a text breaks; privacy apart."""
    words = text.split()
    for section, faults in (
        (rules.length, _length_faults(text, words, rules.length)),
        (rules.quality, _quality_faults(text, words, rules.quality)),
        (rules.repetition, _repetition_faults(text, rules.repetition)),
    ):
        fault = next(faults, None) if _is_on(section) else None
        if fault is not None:
            return fault
    keep = rules.language.keep
    if keep:
        language, probability = find_language(text)
        if language not in keep or probability < rules.language.min_confidence:
            return Fault("language.keep", f"{language} {probability:.2f}")
    return None


def _is_on(section: LengthSection | QualitySection | RepetitionSection) -> bool:
    return any(getattr(section, rule.name) is not None for rule in fields(section))


def _length_faults(text: str, words: Sequence[str], rules: LengthSection) -> Iterator[Fault]:
    for unit, count in (("words", len(words)), ("characters", len(text))):
        low, high = getattr(rules, f"min_{unit}"), getattr(rules, f"max_{unit}")
        if low is not None and count < low:
            yield Fault(f"length.min_{unit}", str(count))
        if high is not None and count > high:
            yield Fault(f"length.max_{unit}", str(count))


def _quality_faults(text: str, words: Sequence[str], rules: QualitySection) -> Iterator[Fault]:
    num_words = max(1, len(words))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    num_lines = max(1, len(lines))
    mean_word = sum(map(len, words)) / num_words
    if rules.min_mean_word is not None and mean_word < rules.min_mean_word:
        yield Fault("quality.min_mean_word", f"{mean_word:.2f}")
    if rules.max_mean_word is not None and mean_word > rules.max_mean_word:
        yield Fault("quality.max_mean_word", f"{mean_word:.2f}")
    symbols = max(text.count("#"), sum(text.count(mark) for mark in _ELLIPSES)) / num_words
    if rules.max_symbols is not None and symbols > rules.max_symbols:
        yield Fault("quality.max_symbols", f"{symbols:.2f}")
    bullets = sum(line.startswith(_BULLETS) for line in lines) / num_lines
    if rules.max_bullet_lines is not None and bullets > rules.max_bullet_lines:
        yield Fault("quality.max_bullet_lines", f"{bullets:.2f}")
    ellipses = sum(line.endswith(_ELLIPSES) for line in lines) / num_lines
    if rules.max_ellipsis_lines is not None and ellipses > rules.max_ellipsis_lines:
        yield Fault("quality.max_ellipsis_lines", f"{ellipses:.2f}")
    yield from _word_faults(words, rules)


def _word_faults(words: Sequence[str], rules: QualitySection) -> Iterator[Fault]:
    least = rules.min_alphabetic_words
    # Words of letters only are counted first: most texts have enough of them, and it is ten times as fast.
    if least is not None and sum(map(str.isalpha, words)) < least * len(words):
        alphabetic = sum(_LETTER.search(word) is not None for word in words) / len(words)
        if alphabetic < least:
            yield Fault("quality.min_alphabetic_words", f"{alphabetic:.2f}")
    if rules.min_stop_words is not None:
        found = len(_STOP_WORDS.intersection(map(str.lower, words)))
        if found < rules.min_stop_words:
            yield Fault("quality.min_stop_words", str(found))


def _repetition_faults(text: str, rules: RepetitionSection) -> Iterator[Fault]:
    pieces = (
        ("line", [line.strip() for line in text.split("\n") if line.strip()]),
        ("paragraph", [piece.strip() for piece in text.split("\n\n") if piece.strip()]),
    )
    for name, found in pieces:
        number, characters = measure_duplicates(found)
        yield from _fault_above(rules, f"duplicate_{name}s", number)
        yield from _fault_above(rules, f"duplicate_{name}_characters", characters)
    words = find_words(text)
    if len(words.hashes):
        yield from _top_faults(words, rules)
        yield from _duplicate_faults(words, rules)


def _top_faults(words: Words, rules: RepetitionSection) -> Iterator[Fault]:
    sizes = np.concatenate(([0], np.cumsum(words.ends - words.starts)))
    most = len(words.hashes)
    for length in _TOP_RUNS:
        limit = getattr(rules, f"top_{length}_gram")
        if limit is None or length > len(words.hashes):
            continue
        # No run is there more often than a shorter one in it: most texts need no second look.
        if most * int((sizes[length:] - sizes[:-length]).max()) <= limit * int(sizes[-1]):
            continue
        part, most = measure_top_run(words, length)
        yield from _fault_above(rules, f"top_{length}_gram", part)


def _duplicate_faults(words: Words, rules: RepetitionSection) -> Iterator[Fault]:
    limits = [getattr(rules, f"duplicate_{length}_grams") for length in _DUPLICATE_RUNS]
    least = min((limit for limit in limits if limit is not None), default=1.0)
    for length in _DUPLICATE_RUNS:
        part = measure_duplicate_runs(words, length)
        yield from _fault_above(rules, f"duplicate_{length}_grams", part)
        if part <= least:
            return  # longer runs cover no other words


def _fault_above(rules: RepetitionSection, name: str, found: float) -> Iterator[Fault]:
    limit = getattr(rules, name)
    if limit is not None and found > limit:
        yield Fault(f"repetition.{name}", f"{found:.2f}")


def measure_duplicates(pieces: Sequence[str]) -> tuple[float, float]:
    """Measure which part of pieces was there before, by number and by characters."""
    unique = set(pieces)
    total = max(1, sum(map(len, pieces)))
    return 1 - len(unique) / max(1, len(pieces)), 1 - sum(map(len, unique)) / total if pieces else 0.0


def measure_top_run(words: Words, length: int) -> tuple[float, int]:
    """Measure the part of characters in the most frequent run of that many words, and how often it is there.

    Returns:
        Part 0 when no run is there twice.
    """
    sizes = words.ends - words.starts
    if len(sizes) < length:
        return 0.0, 0
    runs = hash_runs(words.hashes, length)
    values, counts = _count(runs)
    most = int(counts.max())
    if most == 1:
        return 0.0, 1
    places = np.flatnonzero(_among(runs, values[counts == most]))
    longest = max(int(sizes[place : place + length].sum()) for place in places)
    return most * longest / int(sizes.sum()), most


def measure_duplicate_runs(words: Words, length: int) -> float:
    """Measure the part of characters in runs of that many words that were there before, each counted once."""
    sizes = words.ends - words.starts
    if len(sizes) < length:
        return 0.0
    runs = hash_runs(words.hashes, length)
    values, counts = _count(runs)
    places = np.flatnonzero(_among(runs, values[counts > 1]))
    _, firsts = np.unique(runs[places], return_index=True)
    repeats = np.delete(places, firsts)
    edges = np.zeros(len(sizes) + 1, np.int64)
    np.add.at(edges, repeats, 1)
    np.add.at(edges, repeats + length, -1)
    return float(sizes[np.cumsum(edges)[:-1] > 0].sum() / sizes.sum())


def _count(runs: Hashes) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """Give the values that occur, and how often; np.unique is the same, three times as slow."""
    ordered = np.sort(runs)
    edges = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1], [True])))
    return ordered[edges[:-1]], np.diff(edges)


def _among(runs: Hashes, values: Hashes) -> npt.NDArray[np.bool_]:
    """Whether each run is one of some ordered values."""
    if not len(values):
        return np.zeros(len(runs), np.bool_)
    places = np.minimum(np.searchsorted(values, runs), len(values) - 1)
    found: npt.NDArray[np.bool_] = values[places] == runs
    return found


def _mask_all(text: str, regions: tuple[str, ...]) -> str:
    """Mask every kind, whatever the rules keep: what is shown must not hold a private value."""
    return privacy.mask(text, kinds=privacy.KINDS, phone_regions=regions)[0]


def _around(text: str, mark: str) -> str:
    """Cut a line around the first place of a mark."""
    place = text.index(mark)
    cut = text[max(0, place - _AROUND) : place + len(mark) + _AROUND]
    return " ".join(cut.split())
