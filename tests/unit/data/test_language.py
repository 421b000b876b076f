"""Languages are named, whatever their script; of a long text three pieces decide."""

import pytest

from toolkit.data.quality.language import find_language, list_languages

SENTENCES = {
    "en": "The members of the council have decided that the old bridge should be repaired before the winter comes.",
    "de": "Die Mitglieder des Rates haben beschlossen, dass die alte Bahn noch vor dem Winter erneuert werden soll.",
    "fr": "Les membres du conseil ont voulu que le vieux pont soit remis en service avant la fin de cette saison.",
    "es": "Los miembros del consejo han decidido que el puente viejo debe repararse antes de que llegue el invierno.",
    "it": "I membri del consiglio hanno deciso che il vecchio ponte deve essere riparato prima che arrivi il freddo.",
    "nl": "De leden van de raad hebben besloten dat de oude brug voor het begin van de winter hersteld moet worden.",
    "ru": "\u0421\u0442\u0430\u0440\u044b\u0439 \u043c\u043e\u0441\u0442 "
    "\u043d\u0443\u0436\u043d\u043e \u043f\u043e\u0447\u0438\u043d\u0438\u0442\u044c "
    "\u0434\u043e \u0437\u0438\u043c\u044b, "
    "\u0440\u0435\u0448\u0438\u043b "
    "\u0441\u043e\u0432\u0435\u0442 \u0433\u043e\u0440\u043e\u0434\u0430.",
    "zh": "\u8bae\u4f1a\u51b3\u5b9a\u5728\u51ac\u5929\u5230\u6765\u4e4b"
    "\u524d\u4fee\u590d\u90a3\u5ea7\u65e7\u6865\u3002",
}


@pytest.mark.parametrize(("code", "text"), SENTENCES.items(), ids=SENTENCES.keys())
def test_a_sentence_is_named(code: str, text: str) -> None:
    found, probability = find_language(text)
    assert found == code
    assert probability > 0.5
    assert code in list_languages()


def test_what_is_no_language_is_not_named_with_confidence() -> None:
    for text in ("", "12345 67890 " * 40, "0x1f 3e 44 55 12 99 " * 40):
        assert find_language(text)[1] < 0.5


def test_the_beginning_the_middle_and_the_end_of_a_long_text_decide() -> None:
    english, german = SENTENCES["en"] * 5, SENTENCES["de"] * 50
    assert find_language(english + german + english + german + english)[0] == "en"
