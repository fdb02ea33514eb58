"""When two texts are nearly the same."""

import pytest

from gtr_jax.text.near_text import are_near, words

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


@pytest.mark.parametrize("one, other, near", [
    ("Hello, world!", "hello world", True), ("a (b) c.", "a b c", True), ("a b", "b a", False), ("a", "a b", False),
    ("C", "C++", False), ("-1 < 0", "1 < 0", False), (r"\d+", r"\d*", False), ("it's", "its", False), ("?", "!", True),
    (LONG, LONG.upper() + "!", True), (LONG, LONG + " eighteen nineteen", True),  # The shorter's runs are all there.
    (LONG, LONG.replace("seventeen", "x"), True), (LONG, LONG.replace("sixteen", "x"), True),  # 9 and 8 runs of 10.
    (LONG, LONG.replace("fifteen", "x"), False),
    (LONG, " ".join(reversed(LONG.split())), False),
])
def test_near(one, other, near):
  assert are_near(one, other) == are_near(other, one) == near


def test_words_keep_what_bears_meaning():
  assert words('He said: "C++ > C#", (twice) …') == ["he", "said", "c++", "c#", "twice"]
