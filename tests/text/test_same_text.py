"""When two texts are the same: as ICU has it, and to each that asks."""

import json
import random
import re
import unicodedata

import pytest
import tensorflow as tf
import tensorflow_text

from gtr_jax.demo.corpus import _unique_summaries
from gtr_jax.demo.docstrings import Documentation
from gtr_jax.io.lines import Part
from gtr_jax.mining.pairs import Pair
from gtr_jax.prepare import decontaminate, transforms
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.records import key_of
from gtr_jax.prepare.sources.dpr import Dpr
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.prepare.sources.rocketqa import RocketQA
from gtr_jax.text.same_text import CLOSING, QUOTES, folded, text_key

SAME = [
    ("Hello  World.", "hello world"), ("\ufb01ne", "fine"), ("na\u00efve", "nai\u0308ve"),
    ("why?", "Why\uff1f\uff01 "), ("Stra\u00dfe", "STRASSE"), ("\u039f\u0394\u039f\u03a3", "\u03bf\u03b4\u03bf\u03c2"),
    ("wait\u2026", "Wait ..."), ("\uff26\uff55\uff4c\uff4c \uff11", "full 1"),
    ("a\u00a0b\u3000c\u2028d\x85e\x1cf\u1680g", "a b\tc\n d e f g"), ("soft\u00adly", "softly"),
    ("zero\u200bwidth\ufeff", "zerowidth"), ("\u0130", "i\u0307"), ("\u3092\uff61", "\u3092\u3002"),
    ("\U0001f600\ufe0f", "\U0001f600"), ("\u03b1\u0301\u0345", "\u1fb4"), ("\uac00", "\u1100\u1161"),
    ("\u212b", "\u00e5"), ("\u037e", ";"), ("\u33a5", "m\u00b3"), ("\U0001d400\U0001d41b", "ab"), (" ?! ", "?!"),
    ("\u200b", ""), ("a\x0bb", "a b"),
    # Closing punctuation of other scripts, and before and within quotation marks.
    ("सही उत्तर।", "सही उत्तर"), ("درست جواب۔", "درست جواب"), ("ما هذا؟", "ما هذا"), ("جواب،", "جواب؛"),
    ("正确、", "正确"), ("\u1325\u1229\u1362", "\u1325\u1229"),
    ("「正确」", "正确。"), ("『「正确。」』", "正确"), ("“Yes.”", "yes"), ("«Oui !»", "oui"), ("„Ja.“", "ja"),
    ('The answer is "yes"', 'The answer is "yes."'), ('He said "yes".', 'He said "yes!"'),
    ("‹Oui›", "oui"), ("›Ja.‹", "ja"), ("‚Ja?‘", "ja"), ("《书》", "书"), ("〈书。〉", "书"), ("〝Yes〞", "yes"),
    ("\u03c4\u03b9 \u03b5\u03af\u03bd\u03b1\u03b9\u0387", "\u03c4\u03b9 \u03b5\u03af\u03bd\u03b1\u03b9"),
    ("“He said ‘yes.’”", "he said ‘yes’"), ('“a” or "b."', '“A” or "b"'),
]
DIFFERENT = [
    ("C", "C++"), ("C", "C#"), ("a b", "ab"), ("na\u00efve", "naive"), ("I", "\u0131"), ("1.5", "15"), ("?", "!"),
    ("", "?"), ("\U0001f600", "\U0001f601"), ("(a)", "a"), ("\u00bfa", "a"), ("\u0915", "\u0916"), ("a-b", "a b"),
    ("(why?)", "(why)"), ("10\u00b2", "102"), ("10\u2075", "105"), ("x\u2081", "x1"), ("\u33a5", "m3"),
    ("2\u00bd", "21\u20442"),    ("10\u207b\u00b2", "10\u22122"), ("H\u2082O", "H2O"), ("1\u00ba", "1o"),
    ("f(x)", "f(x"), ("[a]", "a"), ("-1 < 0", "1 < 0"), (r"\d+", r"\d*"), ('"1"', "1"), ("'a'", "a"), ("don't", "dont"),
    ('what is "?"', 'what is "!"'), ("“?”", "“!”"), ("“a” and “b”", "a” and “b"), ("x'", "x"), ("5٫1", "51"),
    ("《a》 b", "a b"), ("l\u00b7l", "ll"), ("‹a› und ‹b›", "a› und ‹b"),
]
APART = [chr(c) for c in range(0x110000)
         if unicodedata.decomposition(chr(c)).split(" ")[0] in ("<super>", "<sub>", "<fraction>")]
AS_LETTERS = dict(zip(map(ord, APART), map(chr, range(0xE000, 0xF8FF)), strict=False))  # That nothing is made of.
BACK = {ord(letter): chr(c) for c, letter in AS_LETTERS.items()}
SQUARES = {c: "".join(chr(int(of, 16)) for of in unicodedata.decomposition(chr(c)).split()[1:])
           for c in range(0x3300, 0x3400)}
TO_ICU = AS_LETTERS | {c: of.translate(AS_LETTERS) for c, of in SQUARES.items() if not set(of).isdisjoint(APART)}


_SPACE = r"\t-\r\x1c-\x1f\x{85}\x{1680}\x{2028}\x{2029}"  # What str.split parts at and case folding makes no blank of.


def by_icu(texts):
  """The same by TensorFlow Text, which has it of ICU (case_fold_utf8 is toNFKC_Casefold, whatever its name says); it is
  not shown what is to stay."""
  texts = [text.translate(TO_ICU) for text in texts]
  folded = tensorflow_text.case_fold_utf8(tf.constant(texts))
  folded = tf.strings.strip(tf.strings.regex_replace(folded, f"[ {_SPACE}]+", " "))
  return [closed(text.decode()).translate(BACK) for text in folded.numpy()]


def closed(text):
  """What is said of the end of a text, as rules that hold as often as they do; one of punctuation alone is itself."""
  any_quotes = "".join(QUOTES) + "".join(QUOTES.values())
  rules = [(f"([^{CLOSING}])[{CLOSING}]+", r"\1"),
           (f"([^{CLOSING}{any_quotes}])[{CLOSING}]+([{''.join(QUOTES)}]+)", r"\1\2")]
  rules += [(rf"\A[{start}] *([^{start}{end}]*[^{start}{end}{CLOSING}{any_quotes}][^{start}{end}]*?) *{end}", r"\1")
            for end, of_end in QUOTES.items() for start in of_end]
  while changed := [new for rule, by in rules if (new := re.sub(rule + r"\Z", by, text)) != text]:
    text = changed[0]
  return text


@pytest.mark.parametrize("a, b", SAME)
def test_same(a, b):
  assert folded(a) == folded(b) and text_key(a) == text_key(b)
  assert len(set(by_icu([a, b]))) == 1


@pytest.mark.parametrize("a, b", DIFFERENT)
def test_different(a, b):
  assert folded(a) != folded(b) and text_key(a) != text_key(b)
  assert len(set(by_icu([a, b]))) == 2


def assigned():
  """All characters that Python's Unicode knows. TensorFlow Text brings a later one, which knows case and forms of some
  that here are not assigned yet; the two agree on all others. Without those that stand in for others in `by_icu`."""
  return [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs") and c not in BACK]


def test_each_character_is_folded_as_by_icu():
  texts = [f"A{c}b {c}" for c in assigned()]
  assert by_icu(texts) == list(map(folded, texts))
  assert by_icu(assigned()) == list(map(folded, assigned()))


def test_texts_are_folded_as_by_icu():
  characters = assigned()
  marks = [c for c in characters if unicodedata.combining(c)]
  changed = [c for c in characters if folded(f"a{c}b") != f"a{c}b"]
  pools = (characters, marks, marks, changed, changed, characters[:0x250], " \t\n\x0b\x1c\x85\u00a0\u2028\u3000",
           ".?!;:,\u3002\u2026\uff1f\uff61\u037e\u0964\u061f\u3001", "\"'\u201c\u201d\u201e\u00ab\u00bb\u300c\u300d",
           "\u00df\u0130\u0131\u03a3\u03c2\u0345\u037a\u1fb3\ufb03\u01c5\u200d\ufe0f\u00ad")
  rng = random.Random(0)
  texts = ["".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(0, 12))) for _ in range(100_000)]
  assert set(BACK).isdisjoint(map(ord, "".join(texts)))
  once = list(map(folded, texts))
  assert by_icu(texts) == once
  assert list(map(folded, once)) == once


def test_half_a_character_is_folded_too():
  assert folded("A\ud800") == "a\ud800" and text_key("A\ud800") == text_key("a\ud800") != text_key("a\ud801")


def examples(source, tmp_path, rows):
  """What a source makes of a file, joined by keys."""
  path = tmp_path / "input"
  path.write_text("".join(row + "\n" for row in rows))
  found, keys = [], {}
  for key, value in source(str(path)).read(Part(str(path), kind="train"), Counts()):
    found += [value] if isinstance(value, Example) else []
    keys.setdefault(key, []).append(value)
  for key, values in keys.items():
    found += [] if isinstance(values[0], Example) else source(str(path)).join(key, values, Counts())
  return found


def negatives(source, *rows):
  return lambda a, b, folder: examples(source, folder, rows_of(rows, a, b))[0].negatives == ("another",)


def rows_of(rows, a, b):
  return [row.replace("POSITIVE", json.dumps(a)[1:-1] if "{" in row else a).replace(
      "NEGATIVE", json.dumps(b)[1:-1] if "{" in row else b) for row in rows]


def judged(a, b, folder):
  for name, rows in (("passages.tsv", (f"1\t{a}", f"2\t{b}", "3\tanother")), ("queries.tsv", ("7\twhat",)),
                     ("qrels.tsv", ("7\t0\t1\t1", "7\t0\t2\t0", "7\t0\t3\t0"))):
    (folder / name).write_text("".join(row + "\n" for row in rows))
  paths = {name: str(folder / f"{name}.tsv") for name in ("passages", "qrels")}
  source = JudgedPairs(name="judged", queries=(str(folder / "queries.tsv"),), cache=str(folder / "cache"), **paths)
  values = [value for part in source.parts() for _, value in source.read(part, Counts())]
  return next(iter(source.join("7", values, Counts()))).negatives == ("another",)


def of_collection(a, b, folder):
  for name, rows in (("corpus.jsonl", [{"_id": "d", "title": "", "text": "else"}]),
                     ("queries.jsonl", [{"_id": "q", "text": a}])):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
  (folder / "qrels").mkdir()
  (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
  decontaminate.write_tested([str(folder)], str(folder / "tested.npz"))
  return decontaminate.Tested(str(folder / "tested.npz")).find(b, "a passage") is not None


def prepared(example_of):
  return lambda a, b, _: len({transforms.pair_of(transforms.Plan(None), example_of(t), transforms.Tally()).digest
                              for t in (a, b)}) == 1


def negatives_of_copies(a, b, _):
  plan, tally = transforms.Plan(None), transforms.Tally()
  pairs = [transforms.pair_of(plan, Example("q", "p", negatives=(t,)), tally) for t in (a, b)]
  return len(transforms.kept(pairs, tally)) == 1 and tally.reasons["negative_of_duplicate"] == 0


ASK = {
    "prepared queries": prepared(lambda text: Example(text, "a passage")),
    "prepared passages": prepared(lambda text: Example("a query", text)),
    "a query that is its passage": lambda a, b, _: transforms.pair_of(
        transforms.Plan(None), Example(a, b), transforms.Tally()) is None,
    "negatives of copies": negatives_of_copies,
    "negatives of pairs": negatives(lambda path: PairsJsonl((path,)),
                                    '{"query": "q", "pos": ["POSITIVE"], "neg": ["NEGATIVE", "another"]}'),
    "negatives of dpr": negatives(
        lambda path: Dpr((path,)), '{"question": "q", "positive_ctxs": [{"title": "", "text": "POSITIVE"}], '
        '"hard_negative_ctxs": [{"title": "", "text": "NEGATIVE"}, {"title": "", "text": "another"}]}'),
    "negatives of rocketqa": negatives(lambda path: RocketQA((path,)), "q\t\tPOSITIVE\t\tNEGATIVE\t0",
                                       "q\t\tPOSITIVE\t\tanother\t0"),
    "negatives that were judged": judged,
    "queries of test collections": of_collection,
    "mined queries": lambda a, b, _: Pair({}, a, "p").query_keys == Pair({}, b, "p").query_keys,
    "the demo's corpus": lambda a, b, _: len(list(_unique_summaries(
        [Documentation("a", a, ""), Documentation("b", b, "")]))) == 1,
    "the loss": lambda a, b, _: len({key_of(a), key_of(b)}) == 1,
}


@pytest.mark.parametrize("who", ASK)
@pytest.mark.parametrize("a, b", [*SAME[:4], *DIFFERENT[:4]])
def test_all_hold_the_same_texts_for_equal(who, a, b, tmp_path):
  assert ASK[who](a, b, tmp_path) == ((a, b) in SAME)
