"""When two texts are nearly the same."""

import os
import subprocess
import sys

import pytest

from gtr_jax.text.near_text import Sums, are_near, contains, content_of, hashes_of, runs, tokens_of, words
from gtr_jax.text.same_text import folded

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


@pytest.mark.parametrize("one, other, near", [
    ("Hello, world!", "hello world", True), ("a (b) c.", "a b c", True), ("a b", "b a", False), ("a", "a b", False),
    ("C", "C++", False), ("-1 < 0", "1 < 0", False), (r"\d+", r"\d*", False), ("it's", "its", False), ("?", "!", True),
    ("what does && mean", "what does || mean", False), ("1 > 0", "1 < 0", False), ("a - b", "a + b", False),
    (".NET", "net", False), ("t5 👎", "t5 👍", False), ("x != y", "x == y", False), ("x == y", "x = y", False),
    ("x != y", "x = y", False), ("!x", "x", False), ("Rome - Oslo", "Rome – Oslo!", True),
    ("Rome—Oslo", "Rome • Oslo", True),
    ("...and then", "and then :)", True), ("「正确」", "正确。", True), ("सही उत्तर।", "“सही उत्तर”", True),
    ("(5 < 6)", "5 < 6.", True), ("a ?", "a", True),
    (LONG, LONG.upper() + "!", True), (LONG, LONG + " eighteen nineteen", True),  # The shorter's runs are all there.
    (LONG, LONG.replace("seventeen", "x"), True), (LONG, LONG.replace("sixteen", "x"), True),  # 9 and 8 runs of 10.
    (LONG, LONG.replace("fifteen", "x"), False),
    (LONG, " ".join(reversed(LONG.split())), False),
])
def test_near(one, other, near):
  assert are_near(one, other) == are_near(other, one) == near


def test_words_keep_what_bears_meaning():
  assert words('He said: "C++ > C#", (twice) …') == ["he", "said", "c++", ">", "c#", "twice"]

def test_hashes_of_runs_are_those_of_their_words_wherever_they_stand():
  text = LONG.split() + ["C++", "C", "-1", "<", "1", r"\d+", r"\d*"]
  sums = Sums(hashes_of(text))
  assert sums.words == 24
  other = Sums(hashes_of(["before", *text]))
  for length in (1, 2, 8, 13):
    assert sums.runs(length).tolist() == other.runs(length)[1:].tolist()
    assert len(set(other.runs(length).tolist())) == 26 - length
    assert sums.run(3, 3 + length) == Sums(hashes_of(text[3:3 + length])).runs(length)
  assert len(sums.runs(25)) == 0 and len(Sums(b"").runs(1)) == 0
  many = Sums(hashes_of([str(i % 3000) for i in range(5000)]))
  assert (many.runs(13)[:1988] == many.runs(13)[3000:]).all()


def test_hashes_are_the_same_in_another_process():
  code = "from gtr_jax.text.near_text import runs; print(sorted(runs('one two (three)')), sorted(runs('?')))"
  other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                         env=os.environ | {"PYTHONHASHSEED": "1"})
  assert other.stdout.strip() == f"{sorted(runs('One two, three.'))} {sorted(runs('!'))}"


@pytest.mark.parametrize("text, part, there", [
    ("One two, three!", "two three", True), ("one two three", "one three", False), ("one two", "", True),
    ("learn C++ now", "C", False), ("learn C++ now", "c++", True), ("if -1 < 0", "1 < 0", False), ("", "a", False),
    ("a—b", "b", True), ("twotwo", "two", False)])
def test_contains(text, part, there):
  assert contains(text, part) is there


@pytest.mark.parametrize("one, other, same", [
    ("What causes a rainbow?", "what is the cause of a rainbow, please", True),
    ("Who lived next to this house", "who is living next to the houses", True),
    ("why C is fast", "why C++ is fast", False),
    ("flights from Rome to Oslo", "flights to Oslo from Rome", False), ("who can vote", "who can not vote", False),
    ("symptoms of measles", "symptoms of mumps", False), (r"what does \d+ match", r"what does \d* match", False),
    ("what does && mean in C", "what does || mean in C", False),
    ("is 1 < 0 true in math", "is it true that 1 > 0 in math", False)])
def test_content_of_questions(one, other, same):
  assert (content_of(tokens_of(folded(one))) == content_of(tokens_of(folded(other)))) is same
