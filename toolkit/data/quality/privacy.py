"""Private values in text: e-mail, phone, IP, card, IBAN and identity numbers, keys; found and masked.

A value must prove itself (check digit, number plan, network range, prefix of its issuer), so that version numbers,
dates, hashes, ISBNs and decimals stay. Not looked for: names and street addresses, which no rule can prove.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import phonenumbers

from toolkit.data.quality.checkdigits import NATIONAL_IDS, iban_length, is_card, is_iban

_Check = Callable[[re.Match[str]], str | None]
"""Turns a candidate into its replacement; None: it is no private value."""

# Every pattern is ASCII: letters of other scripts may touch a value without hiding it. What must not stand before a
# value is asked after its first character: a pattern that begins with characters is searched ten times as fast.
_EMAIL = re.compile(
    r"[\w%+-](?<![\w.%+-].)[\w.%+-]{0,63}@((?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}([A-Za-z]{2,24}))(?![\w(@])",
    re.ASCII,
)
# Reserved for examples (RFC 2606), or the ending of a file: `logo@2x.png`.
_NO_DOMAIN = re.compile(
    r"(?:^|\.)(?:example\.(?:com|net|org)|example|invalid|test|localhost|png|jpe?g|gif|svg|webp|css|js)$"
)
_IPV4 = re.compile(r"[0-9](?<![\w.-].)[0-9]{0,2}\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}(?![\w-]|\.\w)", re.ASCII)
_VERSION_BEFORE = re.compile(
    r"(?:\b(?:v|ver|version|release|build|section|chapter)\.?:?\s*|[=<>~!]=\s*|[A-Za-z]/)$", re.IGNORECASE | re.ASCII
)
# Global unicast is 2000::/3, so the first group has four digits. Source: RFC 4291, section 2.4.
_IPV6 = re.compile(r"[23](?<![\w:.].)[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])", re.ASCII)
# Digits in one piece, or in the groups that cards are printed in: 4-4-4-1 to 4-4-4-4-3, 4-6-5 and 4-6-4.
_CARD = re.compile(
    r"[0-9](?<![\w.].)(?<![0-9]-.)(?:[0-9]{11,18}|[0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{1,3})?"
    r"|[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5})(?!\w|[.-][0-9])",
    re.ASCII,
)
_IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z][0-9]{2}(?: ?[A-Z0-9]){11,29}", re.ASCII)
_PHONE_ABROAD = re.compile(r"\+(?<![\w.+/-].)[0-9][0-9 ().-]{6,18}[0-9](?!\w|[-.][0-9])", re.ASCII)
_PHONE_HERE = re.compile(
    r"[(0-9](?<![\w.+/-].)(?:(?<=\()[0-9]{2,6}\) ?[0-9]{2,5}(?:[ .-]?[0-9]{2,5}){0,3}"
    r"|(?<=[0-9])(?<![0-9] .)[0-9]{0,5}([ .-])[0-9]{2,8}(?:\1[0-9]{2,5}){0,4})(?!\w|[-. ][0-9])",
    re.ASCII,
)
_LEAST_DIGITS = 8  # of a number in its country's way of writing; fewer prove nothing
_DECIMAL = re.compile(r"\+?[0-9]+\.[0-9]+")
_NATIONAL = tuple(
    (
        re.compile(rf"{first}(?<![\w.+-].)(?:{'|'.join(f'({rest})' for _, rest, _ in group)})(?!\w|[.-]\w)", re.ASCII),
        tuple(check for _, _, check in group),
    )
    for first, group in ((first, [form for form in NATIONAL_IDS if form[0] == first]) for first in ("[0-9]", "[A-Z]"))
)
# A fixed beginning, and what follows. Sources: the issuers' documentation of their token formats; RFC 7519 for JWT.
_KEYS = tuple(
    (prefix, re.compile(rf"{re.escape(prefix)}(?<![A-Za-z0-9]{re.escape(prefix)}){rest}(?![A-Za-z0-9])", re.ASCII))
    for prefix, rest in (
        ("AKIA", r"[A-Z2-7]{16}"),
        ("ASIA", r"[A-Z2-7]{16}"),
        *((f"gh{kind}_", r"[A-Za-z0-9]{36,255}") for kind in "pousr"),
        ("github_pat_", r"[A-Za-z0-9_]{82}"),
        ("glpat-", r"[\w-]{20,64}"),
        *((f"xox{kind}-", r"[A-Za-z0-9-]{10,250}") for kind in "abeoprs"),
        *((f"{kind}k_{mode}_", r"[A-Za-z0-9]{24,99}") for kind in "sr" for mode in ("live", "test")),
        ("AIza", r"[\w-]{35}"),
        ("sk-", r"(?:(?:ant|proj|svcacct|admin)-[\w-]{20,250}|[A-Za-z0-9]{48})"),
        ("hf_", r"[A-Za-z0-9]{34,40}"),
        ("npm_", r"[A-Za-z0-9]{36}"),
        ("pypi-AgEI", r"[\w-]{50,250}"),
        ("SG.", r"[\w-]{22}\.[\w-]{43}"),
        ("eyJ", r"[\w-]{10,4000}\.eyJ[\w-]{10,16000}\.[\w-]{20,2000}"),
    )
)
# Source: RFC 7468, section 2.
_PRIVATE_KEY = re.compile(
    r"-----BEGIN ([A-Z ]{0,20})PRIVATE KEY-----(?:[^-]|-(?!----)){32,16000}-----END \1PRIVATE KEY-----"
)

KINDS = ("key", "email", "iban", "card", "national_id", "ip", "phone")
"""In the order in which they are looked for: one that could be part of another comes later."""


def mask(text: str, *, kinds: Iterable[str], phone_regions: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """Replace private values by `<KIND>`; everything else stays as it is, and masking again changes nothing.

    Args:
        text: any text.
        kinds: of `KINDS`.
        phone_regions: countries whose numbers are also found without their +CODE (ISO 3166, two letters).

    Returns:
        The text, and how many were replaced of each kind that was found.
    """
    wanted = [kind for kind in KINDS if kind in set(kinds)]
    counts: dict[str, int] = {}
    changed = True
    while changed:  # a replaced value may have hidden its neighbour: once more until nothing is found
        changed = False
        for kind in wanted:
            text, count = _mask_kind(text, kind, phone_regions)
            if count:
                counts[kind] = counts.get(kind, 0) + count
                changed = True
    return text, counts


def list_regions() -> list[str]:
    """List the countries whose number plan is known."""
    return sorted(phonenumbers.SUPPORTED_REGIONS)


def token(kind: str) -> str:
    """Give what stands in place of a value."""
    return f"<{kind.upper()}>"


def _mask_kind(text: str, kind: str, phone_regions: tuple[str, ...]) -> tuple[str, int]:
    total = 0
    for pattern, check in _searches(text, kind, phone_regions):
        text, count = _replace(text, pattern, check)
        total += count
    return text, total


def _searches(text: str, kind: str, phone_regions: tuple[str, ...]) -> Iterator[tuple[re.Pattern[str], _Check]]:
    """Give the patterns that can be in a text at all: most texts have no `@`, `+` or beginning of a key."""
    if kind == "key":
        yield from ((pattern, lambda match: token("key")) for prefix, pattern in _KEYS if prefix in text)
        if "PRIVATE KEY-----" in text:
            yield _PRIVATE_KEY, lambda match: token("key")
    elif kind == "email":
        if "@" in text:
            yield _EMAIL, _check_email
    elif kind == "iban":
        yield _IBAN, _check_iban
    elif kind == "card":
        yield _CARD, _check_card
    elif kind == "national_id":
        yield from ((pattern, _national_check(checks)) for pattern, checks in _NATIONAL)
    elif kind == "ip":
        yield _IPV4, _check_ip
        if ":" in text:
            yield _IPV6, _check_ip
    else:
        assert kind == "phone", f"no kind {kind}"
        if "+" in text:
            yield _PHONE_ABROAD, _check_abroad
        if phone_regions:
            yield _PHONE_HERE, _phone_check(phone_regions)


def _replace(text: str, pattern: re.Pattern[str], check: _Check) -> tuple[str, int]:
    count = 0

    def decide(match: re.Match[str]) -> str:
        nonlocal count
        replacement = check(match)
        if replacement is None:
            return match[0]
        count += 1
        return replacement

    return pattern.sub(decide, text), count


def _check_email(match: re.Match[str]) -> str | None:
    return None if _NO_DOMAIN.search(match[1].lower()) else token("email")


def _check_ip(match: re.Match[str]) -> str | None:
    """Public addresses only: private, loopback and documentation ranges identify nobody."""
    try:
        address = ipaddress.ip_address(match[0])
    except ValueError:
        return None
    if not address.is_global or address.is_multicast:
        return None
    if address.version == 4:
        single_digits = len(match[0]) == 7  # 1.2.3.4: a section or a version, and the few such addresses are public DNS
        if single_digits or _VERSION_BEFORE.search(match.string, max(0, match.start() - 16), match.start()):
            return None
    return token("ip")


def _check_card(match: re.Match[str]) -> str | None:
    return token("card") if is_card(re.sub("[ -]", "", match[0])) else None


def _check_iban(match: re.Match[str]) -> str | None:
    """Take as many characters as the country's IBANs have; what follows stays."""
    length = iban_length(match[0][:2])
    if length is None:
        return None
    ends = [place for place, mark in enumerate(match[0], start=1) if mark != " "]
    if len(ends) < length:
        return None
    end = ends[length - 1]
    rest = match[0][end:] + match.string[match.end() : match.end() + 1]
    if rest[:1].isalnum() or not is_iban(match[0][:end].replace(" ", "")):
        return None
    return token("iban") + match[0][end:]


@cache
def _national_check(checks: tuple[Callable[[str], bool], ...]) -> _Check:
    def check(match: re.Match[str]) -> str | None:
        assert match.lastindex is not None, "every branch of the pattern is a group"
        is_valid = checks[match.lastindex - 1]
        return token("national_id") if is_valid(re.sub("[ .-]", "", match[0])) else None

    return check


def _check_abroad(match: re.Match[str]) -> str | None:
    if _DECIMAL.fullmatch(match[0]):
        return None
    return _mask_phones(match[0], "ZZ", phonenumbers.Leniency.VALID)


@cache
def _phone_check(regions: tuple[str, ...]) -> _Check:
    lengths = {region: _national_lengths(region) for region in regions}

    def check(match: re.Match[str]) -> str | None:
        num_digits = sum(mark.isdigit() for mark in match[0])
        fits = [region for region, sizes in lengths.items() if num_digits in sizes]
        if not fits or _DECIMAL.fullmatch(match[0]):
            return None
        masked = (_mask_phones(match[0], region, phonenumbers.Leniency.STRICT_GROUPING) for region in fits)
        return next((text for text in masked if text is not None), None)

    return check


def _national_lengths(region: str) -> set[int]:
    """Give how many digits a region's numbers have, with and without what is dialled before them at home."""
    plan = phonenumbers.PhoneMetadata.metadata_for_region(region)
    assert plan is not None, f"{region} has no number plan"
    prefix = len(plan.national_prefix or "")
    known = plan.general_desc.possible_length if plan.general_desc is not None else ()
    lengths = [length for length in known if length >= _LEAST_DIGITS]
    return {length + more for length in lengths for more in (0, prefix)}


def _mask_phones(text: str, region: str, leniency: int) -> str | None:
    found = list(phonenumbers.PhoneNumberMatcher(text, region, leniency=leniency))
    for match in reversed(found):
        text = text[: match.start] + token("phone") + text[match.end :]
    return text if found else None
