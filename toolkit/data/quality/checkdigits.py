"""Numbers that carry their own proof: payment cards, IBANs and national identity numbers."""

import re
from collections.abc import Callable
from datetime import date

# First digits and lengths of payment cards. Source: ISO/IEC 7812 ranges as published by the networks (2024):
# Visa, Mastercard, American Express, Diners Club, Discover, JCB, UnionPay, Maestro.
_CARD = re.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})"
    r"|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}"
    r"|(?:30[0-5][0-9]|3095|3[689][0-9]{2})[0-9]{10}"
    r"|(?:6011|64[4-9][0-9]|65[0-9]{2})[0-9]{12}"
    r"|35(?:2[89]|[3-8][0-9])[0-9]{12}"
    r"|62[0-9]{14,17}"
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])[0-9]{8,15}"
)
# Length of an IBAN by country. Source: SWIFT, IBAN Registry, release 99.
_IBAN_LENGTHS = {
    15: "NO", 16: "BE", 18: "DK FK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_LENGTH_OF = {country: length for length, countries in _IBAN_LENGTHS.items() for country in countries.split()}


def is_card(digits: str) -> bool:
    """Whether digits are a payment card's number: a network's range and length, and the last digit of Luhn."""
    return _CARD.fullmatch(digits) is not None and luhn(digits) and len(set(digits)) > 1


def luhn(digits: str) -> bool:
    """Whether the last digit proves the others. Source: ISO/IEC 7812-1, annex B."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(map(int, digits[-1::-2]))) % 10 == 0


def iban_length(country: str) -> int | None:
    """Give the characters of a country's IBANs; None: it has none."""
    return _LENGTH_OF.get(country)


def is_iban(compact: str) -> bool:
    """Whether characters without spaces are an IBAN. Source: ISO 13616-1, check digits by ISO/IEC 7064 mod 97-10."""
    if len(compact) != iban_length(compact[:2]):
        return False
    return int("".join(str(int(mark, 36)) for mark in compact[4:] + compact[:4])) % 97 == 1


def is_us_ssn(digits: str) -> bool:
    """Whether digits are a US Social Security number; it has no check digit, but ranges never given out.

    Source: Social Security Administration, POMS RM 10201.035.
    """
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in {"000", "666"} and area[0] != "9" and group != "00" and serial != "0000"


def is_spanish_id(text: str) -> bool:
    """Whether a text is a DNI or NIE. Source: Spain, Orden INT/2058/2008 (letter = number mod 23)."""
    number = text[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[-1]


def is_italian_id(text: str) -> bool:
    """Whether a text is a codice fiscale. Source: Italy, Decreto ministeriale 23 December 1976, tables of values."""
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    total = 0
    for place, mark in enumerate(text[:15]):
        value = int(mark) if mark.isdigit() else ord(mark) - ord("A")
        total += value if place % 2 else odd[value]
    return chr(ord("A") + total % 26) == text[15]


def is_polish_id(digits: str) -> bool:
    """Whether digits are a PESEL: date of birth, serial, check digit; months count from 20 for those born from 2000.

    Source: Poland, Ustawa o ewidencji ludnosci. Its other centuries hold nobody who is alive.
    """
    century, month = divmod(int(digits[2:4]), 20)
    weights = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)
    is_born = century < 2 and _is_date(1900 + 100 * century + int(digits[:2]), month, int(digits[4:6]))
    return is_born and _weigh(digits, weights) % 10 == 0


def is_french_id(text: str) -> bool:
    """Whether a text is a numero de securite sociale (NIR) with its key. Source: INSEE, RNIPP."""
    number = int(text[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(text[13:])


def is_chinese_id(text: str) -> bool:
    """Whether a text is a resident identity number. Source: GB 11643-1999, check digit by ISO 7064 mod 11-2."""
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    is_born = _is_date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
    return is_born and "10X98765432"[_weigh(text[:17], weights) % 11] == text[17].upper()


def is_brazilian_id(digits: str) -> bool:
    """Whether digits are a CPF. Source: Brazil, Receita Federal, Instrucao Normativa 1548/2015."""
    if len(set(digits)) == 1:
        return False
    return all(_weigh(digits[:last], range(last + 1, 1, -1)) * 10 % 11 % 10 == int(digits[last]) for last in (9, 10))


NATIONAL_IDS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("[0-9]", r"[0-9]{2}-[0-9]{2}-[0-9]{4}", is_us_ssn),
    ("[0-9]", r"[0-9]{7}-?[A-HJ-NP-TV-Z]", is_spanish_id),
    ("[0-9]", r"[0-9]{10}", is_polish_id),
    (
        "[0-9]",
        r"(?<=[12]) ?[0-9]{2} ?(?:0[1-9]|1[0-2]) ?(?:[0-9]{2}|2[AB]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}",
        is_french_id,
    ),
    ("[0-9]", r"[0-9]{5}(?:19|20)[0-9]{9}[0-9Xx]", is_chinese_id),
    ("[0-9]", r"[0-9]{2}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", is_brazilian_id),
    ("[A-Z]", r"(?<=[XYZ])[0-9]{7}-?[A-HJ-NP-TV-Z]", is_spanish_id),
    ("[A-Z]", r"[A-Z]{5}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]", is_italian_id),
)
"""First character, the others, and the check of a number without its separators: US, ES, PL, FR, CN, BR, ES, IT."""


def _weigh(digits: str, weights: tuple[int, ...] | range) -> int:
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=True))


def _is_date(year: int, month: int, day: int) -> bool:
    try:
        date(year, month, day)
    except ValueError:
        return False
    return True
