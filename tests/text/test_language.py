"""Which language a text is in: short and long ones, English and others."""

import pytest

from gtr_jax.errors import InputError
from gtr_jax.text import language

ENGLISH = [
    "Need help!", "How do magnets work?", "who is the king", "What causes high blood pressure?",
    "Is Venezuela a large country?",
    "best way to learn Python fast", "Favorite rainy Saturday dinner? I was thinking soup or maybe potatoes.",
    "What do you think about this beer that I have found in the cellar of my house?",
    "It’s a naïve café that I’ve been to, and they don’t have any",
    "Great site for resources on Seymour Papert - Logo meets Legos",
    "Bush administration claims: President's power is beyond congressional ability to regulate",
    "North Korea's official name is the Democratic People's Republic of Korea.",
]
OTHERS = {
    "de": ["Wie funktioniert ein Magnet?", "Was trinkt ihr gerade?", "der König und seine Tochter",
           "Das ist doch in der Stadt so gut wie an jedem anderen Tag im Sommer"],
    "fr": ["Comment fonctionne un aimant ?", "le roi et sa fille",
           "J'ai acheté une bière hier et elle était si bonne que je veux en acheter encore"],
    "es": ["¿Cómo funciona un imán?", "Mexicano, eres feliz en tu trabajo?",
           "Ayer compré una cerveza que estaba muy buena y quiero volver a comprar la misma pero no se donde"],
    "it": ["Come funziona un magnete?", "Italiani di reddit, mi parlate un po' di voi?"],
    "pt": ["Em quem vão votar?", "Eu comprei uma cerveja ontem que estava muito boa"],
    "nl": ["Hoe werkt een magneet?", "Wat is het in dit land toch zo warm op de eerste dag van mei"],
    "sv": ["Hur fungerar en magnet?", "Jag vet inte vad det är"],
    "pl": ["Jak działa magnes?", "Wczoraj kupiłem piwo i było tak dobre że chcę je kupić jeszcze raz"],
    "ru": ["пиво", "Как работает магнит?"],
    "ja": ["これはビールです", "日本のビールはとても 美味しい です と 思います から"],
    "zh": ["磁铁是怎样工作的", "什么是高血压"],
}


def test_english_is_kept_and_others_are_not():
  assert [text for text in ENGLISH if not language.is_in("en", text)] == []
  assert [text for texts in OTHERS.values() for text in texts if language.is_in("en", text)] == []


def test_other_languages_can_be_asked_for():
  for code, texts in OTHERS.items():
    assert [text for text in texts if not language.is_in(code, text)] == []
    assert sum(language.is_in(code, text) for text in ENGLISH) <= 2, code


def test_any_language_and_what_is_no_text():
  assert language.is_in(language.ANY, "пиво") and language.is_in(language.ANY, "")
  assert language.is_in("en", "A cut \ud83d emoji in it, and more of what is said in English")


def test_a_passage_vouches_for_its_query():
  passage = "It is about a man who comes home and finds out that everything has changed since."
  assert not language.is_in("en", "Is Venezuela urbanized?") and not language.is_in("en", "IJW: The Fall (2006)")
  assert language.pair_is_in("en", "Is Venezuela urbanized?", passage)
  assert language.pair_is_in("en", "IJW: The Fall (2006)", passage)
  assert not language.pair_is_in("en", "Mexicano, eres feliz en tu trabajo?", passage)
  assert not language.pair_is_in("en", "What is it about?", "Es geht um einen Mann, der nach Hause kommt.")
  assert language.pair_is_in(language.ANY, "¿Cómo?", "Es geht um einen Mann.")


def test_an_unknown_code():
  language.check("en")
  language.check(language.ANY)
  with pytest.raises(InputError, match="--language english: no language of this code is known; give one of af, am, .*, "
                     "en, .*, or any"):
    language.check("english")
