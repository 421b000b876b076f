"""Filters, masks and signatures of duplicates: MB of text per CPU-second, and how right the masks are.

Rows run by turns on the same documents, one process; printed is the median of rounds. Peers run where they are
installed (datatrove with spacy, datasketch) and take their own way from a text to a verdict. The masks are then
asked for values made here, and for what only looks like them: recall and precision by kind.
"""

import argparse
import json
import random
import statistics
import string
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import phonenumbers

from toolkit.data.quality.checkdigits import is_brazilian_id, is_iban, is_polish_id, is_spanish_id, luhn
from toolkit.data.quality.dedup import sign
from toolkit.data.quality.filters import find_fault
from toolkit.data.quality.language import find_language
from toolkit.data.quality.privacy import KINDS, mask, token
from toolkit.data.quality.rules import LanguageSection, LengthSection, QualitySection, RepetitionSection, Rules
from toolkit.data.text.sources import find_inputs, read_documents

Row = Callable[[str], object]
OFF: dict[str, Any] = {
    "length": LengthSection(min_words=None, max_words=None),
    "quality": QualitySection(**dict.fromkeys(QualitySection.__dataclass_fields__)),
    "repetition": RepetitionSection(**dict.fromkeys(RepetitionSection.__dataclass_fields__)),
}


def main() -> None:
    """Time each row and count right and wrong masks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", help="text: .jsonl[.gz|.zst], .parquet, .txt; data_prep/python_docs.py makes some")
    parser.add_argument("--documents", type=int, default=300, help="documents of the corpus (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="times each row runs (default: %(default)s)")
    parser.add_argument("--values", type=int, default=300, help="values made of each kind (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON on the last line")
    asked = parser.parse_args()
    texts = read_texts(asked.corpus, asked.documents)
    rows = {**our_rows(), **datatrove_rows(), **datasketch_rows()}
    speeds = time_rows(rows, texts, rounds=asked.rounds)
    print(f"{len(texts)} documents, {count_mb(texts):.1f} MB; MB per CPU-second:")
    for name, speed in speeds.items():
        print(f"  {name:<44} {speed:8.2f}")
    rights = judge_masks(asked.values)
    print("masks:                recall   precision")
    for kind, (recall, precision) in rights.items():
        print(f"  {kind:<18} {recall:8.3f}    {precision:8.3f}")
    if asked.json:
        print(json.dumps({"mb_per_cpu_s": speeds, "masks": rights}))


def read_texts(corpus: str, count: int) -> list[str]:
    """Take documents from all over a corpus."""
    texts = [document.text for name in find_inputs([corpus]) for document in read_documents(name, column="text")]
    return texts[:: max(1, len(texts) // count)][:count]


def count_mb(texts: Sequence[str]) -> float:
    """Count megabytes of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def time_rows(rows: dict[str, Row], texts: Sequence[str], *, rounds: int) -> dict[str, float]:
    """Run rows by turns; each once before, for what it loads."""
    speeds: dict[str, list[float]] = {name: [] for name in rows}
    for act in rows.values():
        act(texts[0])
    for _ in range(rounds):
        for name, act in rows.items():
            started = time.process_time()
            for text in texts:
                act(text)
            speeds[name].append(count_mb(texts) / (time.process_time() - started))
    return {name: statistics.median(found) for name, found in speeds.items()}


def our_rows() -> dict[str, Row]:
    """Give each rule alone, and all of them."""
    rules = Rules()
    alone = {name: Rules(**{**OFF, name: getattr(rules, name)}) for name in OFF}
    everything = replace(rules, language=LanguageSection(keep=["en"]))

    def filter_whole(text: str) -> object:
        fault = find_fault(text, everything)
        return fault or mask(text, kinds=KINDS, phone_regions=("US",))

    rows: dict[str, Row] = {}
    for name, some in alone.items():
        rows[f"filter {name}"] = lambda text, some=some: find_fault(text, some)  # type: ignore[misc]
    rows["filter language"] = find_language
    for kind in KINDS:
        rows[f"mask {kind}"] = lambda text, kind=kind: mask(  # type: ignore[misc]
            text, kinds=[kind], phone_regions=("US",)
        )
    rows["mask all seven kinds"] = lambda text: mask(text, kinds=KINDS, phone_regions=("US",))
    rows["filter and mask, all rules"] = filter_whole
    rows["MinHash signature, 128 hashes"] = lambda text: sign([text])
    return rows


def datatrove_rows() -> dict[str, Row]:
    """Give datatrove's filters of the same papers, and its masks (e-mail and IP only)."""
    if find_spec("datatrove") is None:
        return {}
    from datatrove.data import Document  # deferred: only where it is installed, as below  # noqa: PLC0415
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature  # noqa: PLC0415
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter  # noqa: PLC0415
    from datatrove.pipeline.formatters import PIIFormatter  # noqa: PLC0415
    from datatrove.utils.hashing import HashConfig  # noqa: PLC0415

    quality, repetition, masks = GopherQualityFilter(), GopherRepetitionFilter(), PIIFormatter()
    config = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"))  # its xxhash does not take xxhash 4
    signature = MinhashDedupSignature(output_folder="memory://signatures", config=config)
    return {
        "datatrove quality": lambda text: quality.filter(Document(text=text, id="")),
        "datatrove repetition": lambda text: repetition.filter(Document(text=text, id="")),
        "datatrove masks, 2 kinds": masks.format,
        "datatrove MinHash signature, 112 hashes": lambda text: signature.get_signature(signature.get_shingles(text)),
    }


def datasketch_rows() -> dict[str, Row]:
    """Give datasketch's signatures of the same runs of words."""
    if find_spec("datasketch") is None:
        return {}
    from datasketch import MinHash  # deferred: only where it is installed  # noqa: PLC0415

    def act(text: str) -> object:
        words = text.lower().split()
        found = MinHash(num_perm=128)
        found.update_batch([" ".join(words[place : place + 5]).encode() for place in range(max(1, len(words) - 4))])
        return found

    return {"datasketch MinHash signature, 128 hashes": act}


def judge_masks(count: int) -> dict[str, tuple[float, float]]:
    """Mask lines with one made value each, and lines with what only looks like one; give recall and precision."""
    choice = random.Random(0)
    lines = [(kind, make(choice)) for kind, make in MAKERS.items() for _ in range(count)]
    lines += [("", make(choice)) for make in LOOKALIKES for _ in range(count)]
    right, found, there = ({kind: 0 for kind in KINDS} for _ in range(3))
    for kind, value in lines:
        line = choice.choice(["Please use {} today.", "({})", "value: {}\nnext", "{}, and so on", "id={};"]).format(
            value
        )
        masked, counts = mask(line, kinds=KINDS, phone_regions=("US",))
        for other, number in counts.items():
            found[other] += number
        if kind:
            there[kind] += 1
            right[kind] += masked == line.replace(value, token(kind))
    return {kind: (right[kind] / there[kind], right[kind] / max(1, found[kind])) for kind in KINDS}


def digits(choice: random.Random, count: int) -> str:
    """Make digits."""
    return "".join(choice.choices(string.digits, k=count))


def letters(choice: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    """Make letters and digits."""
    return "".join(choice.choices(alphabet, k=count))


def make_card(choice: random.Random) -> str:
    """Make a card's number as it is printed or typed."""
    begin = choice.choice(["4", "51", "2345", "6011", "3530"])
    body = begin + digits(choice, 15 - len(begin))
    number = next(body + last for last in string.digits if luhn(body + last))
    separator = choice.choice(["", " ", "-"])
    return separator.join(number[place : place + 4] for place in range(0, 16, 4))


def make_iban(choice: random.Random) -> str:
    """Make a German or Dutch IBAN, in groups or in one piece."""
    country, rest = choice.choice([("DE", digits(choice, 18)), ("NL", letters(choice, 4, "ABNG") + digits(choice, 10))])
    number = next(f"{country}{check:02d}{rest}" for check in range(2, 99) if is_iban(f"{country}{check:02d}{rest}"))
    return choice.choice([number, " ".join(number[place : place + 4] for place in range(0, len(number), 4))])


def make_national_id(choice: random.Random) -> str:
    """Make an identity number of the US, Spain, Poland or Brazil."""
    kind = choice.randrange(4)
    if kind == 0:
        return f"{choice.randrange(1, 665):03d}-{choice.randrange(1, 99):02d}-{choice.randrange(1, 9999):04d}"
    if kind == 1:
        number = digits(choice, 8)
        return next(
            number + letter for letter in string.ascii_uppercase if letter in SPANISH and is_spanish_id(number + letter)
        )
    if kind == 2:
        born = (
            f"{choice.randrange(40, 99)}{choice.randrange(1, 13):02d}{choice.randrange(1, 29):02d}{digits(choice, 4)}"
        )
        return next(born + last for last in string.digits if is_polish_id(born + last))
    while True:
        number = digits(choice, 11)
        if is_brazilian_id(number):
            return f"{number[:3]}.{number[3:6]}.{number[6:9]}-{number[9:]}"


def make_phone(choice: random.Random) -> str:
    """Make a number by changing an example's last digits: valid in its plan, in one of its ways of writing."""
    region = choice.choice(["US", "GB", "DE", "FR", "IN", "JP"])
    example = phonenumbers.example_number(region)
    assert example is not None
    while True:
        example.national_number = int(str(example.national_number)[:-4] + digits(choice, 4))
        if phonenumbers.is_valid_number(example):
            break
    forms = phonenumbers.PhoneNumberFormat
    form = choice.choice([forms.E164, forms.INTERNATIONAL, *([forms.NATIONAL] if region == "US" else [])])
    return phonenumbers.format_number(example, form)


def make_ip(choice: random.Random) -> str:
    """Make a public address."""
    first = choice.choice([23, 52, 81, 93, 151, 185])
    four = ".".join(map(str, [first, *(choice.randrange(256) for _ in range(3))]))
    return choice.choice([four, f"2a02:{letters(choice, 4, HEX[1:])}:{letters(choice, 4, HEX[1:])}::1"])


def make_key(choice: random.Random) -> str:
    """Make a key of AWS, GitHub or Hugging Face."""
    aws = "AKIA" + letters(choice, 16, "ABCDEFG234567")
    return choice.choice([aws, "ghp_" + letters(choice, 36), "hf_" + letters(choice, 34)])


def make_email(choice: random.Random) -> str:
    """Make an address."""
    domain = f"{letters(choice, 6, string.ascii_lowercase)}.{choice.choice(['com', 'de', 'co.uk', 'io'])}"
    return f"{letters(choice, 5)}.{letters(choice, 4)}@{domain}"


def make_uuid(choice: random.Random) -> str:
    """Make a UUID of version 4."""
    groups = [letters(choice, count, HEX) for count in (8, 4, 3, 3, 12)]
    return f"{groups[0]}-{groups[1]}-4{groups[2]}-a{groups[3]}-{groups[4]}"


def make_time(choice: random.Random) -> str:
    """Make a date and time."""
    day = f"{choice.randrange(1900, 2030)}-{choice.randrange(1, 13):02d}-{choice.randrange(1, 29):02d}"
    return f"{day} 12:30:{choice.randrange(60):02d}"


def make_version(choice: random.Random) -> str:
    """Make a version of three numbers, or of four after a v."""
    three = f"{choice.randrange(30)}.{choice.randrange(30)}.{choice.randrange(99)}"
    return choice.choice([three, f"v{three}.{choice.randrange(200)}"])


HEX = "0123456789abcdef"
SPANISH = "TRWAGMYFPDXBNJZSQVHLCKE"
MAKERS: dict[str, Callable[[random.Random], str]] = {
    "key": make_key,
    "email": make_email,
    "iban": make_iban,
    "card": make_card,
    "national_id": make_national_id,
    "ip": make_ip,
    "phone": make_phone,
}
LOOKALIKES: list[Callable[[random.Random], str]] = [
    make_version,
    make_time,
    make_uuid,
    lambda choice: f"0.{digits(choice, 16)}",
    lambda choice: f"{choice.randrange(1000)},{digits(choice, 3)},{digits(choice, 3)}.{digits(choice, 2)}",
    lambda choice: letters(choice, choice.choice([32, 40, 64]), HEX),
    lambda choice: f"978-{choice.randrange(10)}-{digits(choice, 3)}-{digits(choice, 5)}-{choice.randrange(10)}",
    lambda choice: digits(choice, choice.choice([9, 11, 13, 16])),
    lambda choice: str(1_600_000_000_000 + choice.randrange(10**11)),
    lambda choice: f"192.168.{choice.randrange(256)}.{choice.randrange(256)}",
    lambda choice: f"{letters(choice, 5, string.ascii_lowercase)}@{choice.randrange(9)}.{choice.randrange(30)}.0",
    lambda choice: f"{letters(choice, 6, string.ascii_lowercase)}@example.com",
    lambda choice: (
        f"x[{choice.randrange(99)}] = m{choice.randrange(9)} @ w{choice.randrange(9)}.T + {digits(choice, 4)}"
    ),
]


if __name__ == "__main__":
    main()
