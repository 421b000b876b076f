"""Private values: found when they prove themselves, masked and nothing else; what only looks alike stays."""

import random
import string

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.data.quality.checkdigits import is_brazilian_id, is_card, is_iban, luhn
from toolkit.data.quality.privacy import KINDS, mask, token

REGIONS = ("US",)
CARD_FORMATS = {13: (4, 4, 4, 1), 14: (4, 6, 4), 15: (4, 6, 5), 16: (4, 4, 4, 4), 19: (4, 4, 4, 4, 3)}
CARD_BEGINNINGS = {
    13: ["4"],
    14: ["36", "300"],
    15: ["34", "37"],
    16: ["4", "51", "2221", "6011", "3528"],
    19: ["4", "62"],
}


def masked(text: str) -> str:
    return mask(text, kinds=KINDS, phone_regions=REGIONS)[0]


@st.composite
def cards(draw: st.DrawFn) -> str:
    length = draw(st.sampled_from(sorted(CARD_FORMATS)))
    digits = draw(st.sampled_from(CARD_BEGINNINGS[length]))
    digits += "".join(draw(st.lists(st.sampled_from(string.digits), min_size=19, max_size=19)))
    digits = digits[: length - 1]
    digits += next(last for last in string.digits if luhn(digits + last))
    separator = draw(st.sampled_from(["", " ", "-"]))
    sizes = iter(CARD_FORMATS[length])
    groups = []
    while digits:
        size = next(sizes)
        groups.append(digits[:size])
        digits = digits[size:]
    return separator.join(groups)


@settings(max_examples=100, deadline=None)
@given(cards())
def test_every_card_in_a_printed_format_is_masked(card: str) -> None:
    assert masked(f"paid with {card}, thanks") == "paid with <CARD>, thanks"


@settings(max_examples=100, deadline=None)
@given(cards(), st.integers(1, 9))
def test_a_card_with_a_wrong_digit_stays(card: str, change: int) -> None:
    wrong = card[:-1] + str((int(card[-1]) + change) % 10)
    assert mask(f"paid with {wrong}, thanks", kinds=["card"], phone_regions=())[1] == {}


VALUES_AND_GLUE = [
    "a@b.co", "x.y@mail.org", "8.34.5.67", "2a00:1450:4001::200e", "4111 1111 1111 1111", "4111111111111111",
    "DE89 3704 0044 0532 0130 00", "+1 415-555-2671", "(415) 555-2671", "529.982.247-25", "12345678Z",
    "AKIA" + "A" * 16, "ghp_" + "a" * 36, "<EMAIL>", "@", "1", "Z", "v", "=", "/", "+", ".", "-", " ", "\n", "\u4e16",
]  # fmt: skip
PIECES = st.sampled_from(VALUES_AND_GLUE)


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES, max_size=12))
def test_masking_again_changes_nothing(pieces: list[str]) -> None:
    once = masked("".join(pieces))
    assert masked(once) == once


@settings(max_examples=100, deadline=None)
@given(st.lists(PIECES | st.text(max_size=8), max_size=12))
def test_everything_but_the_values_stays_byte_for_byte(pieces: list[str]) -> None:
    text = "".join(pieces)
    left = masked(text)
    for kind in KINDS:
        left = left.replace(token(kind), "\0")
    place = 0
    for kept in left.replace("<EMAIL>", "\0").split("\0"):
        place = text.index(kept, place) + len(kept)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=string.ascii_letters + " .,;:!?'\"()\n", max_size=300))
def test_text_without_digits_and_at_signs_stays(text: str) -> None:
    assert masked(text) == text


LOOKALIKES = {
    "version": "torch 2.6.0, kernel 5.15.0-91, .NET 4.0.30319.42000, version 10.2.33.4, v20.11.1.12, foo==1.22.33.44",
    "user agent": "Mozilla/5.0 Chrome/120.0.0.0 Safari/537.36 Edg/98.12.1.7",
    "date": "2024-03-15 12:30:45.123456 and 15/03/2024, 20240315T123045Z, 1999-12-31 23:59:59, 31.12.1999",
    "hash": "d41d8cd98f00b204e9800998ecf8427e da39a3ee5e6b4b0d3255bfef95601890afd80709 sha256:4111111111111111aa",
    "isbn": "ISBN 978-0-306-40615-7, 9780306406157, 0-306-40615-2, ISSN 0378-5955",
    "decimal": "3.14159265358979 0.4111111111111111 -86.6025403784 +35236450.6 1e-15 6.02214076e23 1,234,567,890",
    "identifier": "550e8400-e29b-41d4-a716-446655440000 1700000000 1700000000000 1700000000000000000 10.1000/182",
    "code": "a[i@j] = x@self.weight(y); @property\ndef f(x): return m @ n.T\nstd::cout << abc::def; dead::beef",
    "file": "logo@2x.png icon@3x.webp package@1.2.3 user@host git@v2",
    "private range": "127.0.0.1 10.0.0.12 192.168.1.20 172.16.5.4 0.0.0.0 255.255.255.0 fe80::1 ::1 2001:db8::1",
    "section": "see 1.2.3.4 and section 12.3.44.5; 1.3.6.1.4.1.311 is an OID; 1.0.12.127.in-addr.arpa",
    "example": "write to user@example.com or info@mail.example.org",
    "constant": "7.297 352 5693 and 4.850 870 209 5432 e-35  0.000 and -2.002 319 304 3622   0.000",
    "table": "12 345 678 910\n0.12 0.34 0.56\n100 200 300 400\n1999 2000 2001 2002",
    "time": "12:34:56 00:1B:44:11:3A:B7 1:2:3:4:5:6:7:8",
}


@pytest.mark.parametrize("text", LOOKALIKES.values(), ids=LOOKALIKES.keys())
def test_what_only_looks_like_a_private_value_stays(text: str) -> None:
    assert masked(text) == text


VALUES = {
    "<ip>8.34.15.67</ip>, ip=8.34.15.67": "<ip><IP></ip>, ip=<IP>",
    "(415-555-2671), ((415) 555-2671)": "(<PHONE>), (<PHONE>)",
    "Mail a.b+c@mail.uni-x.de now": "Mail <EMAIL> now",
    "mailto:joe@corp.io>": "mailto:<EMAIL>>",
    "\u8054\u7cfbfoo@bar.cn\u3002": "\u8054\u7cfb<EMAIL>\u3002",
    "from 8.34.15.67:443 to http://93.184.216.34/": "from <IP>:443 to http://<IP>/",
    "on 2a00:1450:4001:829::200e today": "on <IP> today",
    "IBAN DE89370400440532013000.": "IBAN <IBAN>.",
    "GB82 WEST 1234 5698 7654 32 and more": "<IBAN> and more",
    "call +44 20 7946 0018 or (415) 555-2671": "call <PHONE> or <PHONE>",
    "\u7535\u8bdd+8613800138000\u53f7": "\u7535\u8bdd<PHONE>\u53f7",
    "SSN 219-09-9999, CPF 529.982.247-25": "SSN <NATIONAL_ID>, CPF <NATIONAL_ID>",
    "DNI 12345678Z, NIE X1234567L": "DNI <NATIONAL_ID>, NIE <NATIONAL_ID>",
    "CF RSSMRA85T10A562S PESEL 44051401359": "CF <NATIONAL_ID> PESEL <NATIONAL_ID>",
    "NIR 2 55 08 14 168 025 38 or 255081416802538": "NIR <NATIONAL_ID> or <NATIONAL_ID>",
    "ID 11010519491231002X": "ID <NATIONAL_ID>",
}


@pytest.mark.parametrize(("text", "expected"), VALUES.items())
def test_values_are_masked_where_they_stand(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_keys_with_a_known_beginning_are_masked() -> None:
    letters = random.Random(0)  # made here: a key in a file would set off other people's scanners

    def some(count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
        return "".join(letters.choice(alphabet) for _ in range(count))

    keys = [
        "AKIA" + some(16, string.ascii_uppercase + "234567"), "ghp_" + some(36), "glpat-" + some(20), "hf_" + some(34),
        "xoxb-" + some(12, string.digits) + "-" + some(24), "sk_live_" + some(24), "AIza" + some(35), "npm_" + some(36),
        "sk-ant-" + some(40), "sk-proj-" + some(60), "sk-" + some(48), "pypi-AgEI" + some(60), "github_pat_" + some(82),
        "SG." + some(22) + "." + some(43), f"eyJ{some(30)}.eyJ{some(60)}.{some(43)}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{some(64)}\n{some(64)}\n-----END RSA PRIVATE KEY-----",
    ]  # fmt: skip
    for key in keys:
        assert masked(f'token = "{key}"') == 'token = "<KEY>"', key
        assert masked(f"task-{key[3:10]} AKIA sk-learn eyJ hf_hub") == f"task-{key[3:10]} AKIA sk-learn eyJ hf_hub"


@pytest.mark.parametrize("region", ["US", "GB", "DE", "FR", "IN", "BR", "JP", "NG"])
def test_example_numbers_of_the_library_are_found_in_both_ways_of_writing(region: str) -> None:
    number = phonenumbers.example_number(region)
    for form in (phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164):
        text = phonenumbers.format_number(number, form)
        assert mask(f"call {text} now", kinds=["phone"], phone_regions=())[0] == "call <PHONE> now"
    national = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    if not national.isdigit():  # digits in one piece prove nothing
        assert mask(f"call {national} now", kinds=["phone"], phone_regions=(region,))[0] == "call <PHONE> now"


def test_only_the_kinds_asked_for_are_looked_for() -> None:
    text = "a@b.co 8.34.15.67"
    assert mask(text, kinds=["ip"], phone_regions=()) == ("a@b.co <IP>", {"ip": 1})


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=string.digits, min_size=14, max_size=16))
def test_one_changed_digit_never_leaves_check_digits_right(digits: str) -> None:
    other = str((int(digits[3]) + 1) % 10) + digits[4:]
    assert not (luhn(digits) and luhn(digits[:3] + other))
    iban = "DE00" + digits[:14].rjust(18, "1")
    assert sum(is_iban(f"DE{check:02d}{iban[4:]}") for check in range(2, 99)) == 1


def test_a_row_of_one_digit_is_no_number() -> None:
    assert not is_card("4" * 16)
    assert not is_brazilian_id("1" * 11)
