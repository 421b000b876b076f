"""The language of a text, by py3langid: its model comes with the package, nothing is fetched.

Chosen by measurement on 2,136 texts of 89 languages, cut from the translations of Django: it names 98.8 %
of those of 1,000 characters rightly among the languages it knows, fastText's small model 88.2 %, lingua 90.1 %. Its
model is BSD like its code.
"""

from functools import cache
from typing import Any

_PIECE = 400  # characters; three of them: 1,000 characters are named rightly in 99.6 % (29 widespread languages)


def find_language(text: str) -> tuple[str, float]:
    """Name the language of a text by its beginning, middle and end: ISO 639 code and probability."""
    if len(text) > 3 * _PIECE:
        middle = (len(text) - _PIECE) // 2
        text = " ".join([text[:_PIECE], text[middle : middle + _PIECE], text[-_PIECE:]])
    code, probability = _identifier().classify(text)
    return str(code), float(probability)


def list_languages() -> list[str]:
    """List the codes that `find_language` can give."""
    return sorted(_identifier().labels)


@cache
def _identifier() -> Any:
    from py3langid import langid  # deferred: costs 0.15 s, and its model 0.4 s and 60 MB  # noqa: PLC0415

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
