"""dropped.jsonl: the first examples of each reason, however the work is shared out."""

import dataclasses
import json
from pathlib import Path

import pytest
import toy_source
from toy_source import ToySource, write

from gtr_jax.errors import InputError
from gtr_jax.io import data_root
from gtr_jax.prepare import engine, transforms
from gtr_jax.prepare.manifests import Settings
from gtr_jax.prepare.sources.dpr import Dpr
from gtr_jax.prepare.sources.nq_open import NqOpen
from gtr_jax.prepare.sources.pairs_by_id import JudgedPairs
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl
from gtr_jax.prepare.sources.reddit import Reddit
from gtr_jax.prepare.sources.rocketqa import RocketQA
from gtr_jax.prepare.sources.stack_exchange import StackExchange


@pytest.fixture(autouse=True)
def few_shards(monkeypatch):
  """Each is a task, and several files."""
  monkeypatch.setattr(engine, "_MIN_BUCKETS", 8)


@pytest.fixture
def data(tmp_path):
  data_root.set_data_dir(str(tmp_path / "data"))
  yield tmp_path / "data"
  data_root.set_data_dir(None)


def prepare(source, processes=1, **settings):
  return Path(engine.prepare(source, Settings(**settings), processes=processes, say=lambda line: None, max_broken=1))


def rows(folder):
  return list(map(json.loads, (folder / "dropped.jsonl").read_text().splitlines()))


def test_an_example_of_every_reason(data, tmp_path):
  queries = write(tmp_path / "queries.jsonl", [{"_id": "q", "text": "what is tested here"}])
  (tmp_path / "qrels").mkdir()
  (tmp_path / "qrels/test.tsv").write_text("q\td\t1\n")
  write(tmp_path / "corpus.jsonl", [{"_id": "d", "title": "", "text": "A relevant document."}])
  assert queries
  good = toy_source.rows(200)
  bad = [{"query": "a", "passage": "b", "length": 0}, {"query": "", "passage": "no query"}, b"{broken",
         {"query": "itself", "passage": "Itself."}, {"query": "a", "passage": "half \ud83d of it"},
         {"query": "What is tested here?", "passage": "c"},
         {"query": "e", "passage": "f", "negatives": ["a relevant document"],
          "negative_queries": ["what is tested here"]},
         {"query": "g", "passage": "h", "negatives": ["i"]}, {"query": "g", "passage": "i"},
         {"query": "k", "passage": "l", "is_negative": True}, good[0]]
  other = write(tmp_path / "b.jsonl", good[100:])
  prepare(ToySource((other,)), name="other")
  path = write(tmp_path / "a.jsonl", [*good, *bad * 3])
  settings = {"decontaminate": (str(tmp_path),), "without": ("other",)}
  folder = prepare(ToySource((path,)), **settings)
  counts = json.loads((folder / "manifest.json").read_text())["counts"]
  found = {}
  for row in rows(folder):
    found.setdefault(row["reason"].partition(" ")[0], []).append(row)
  kept = {"read", "written", "with_up_to_4_other_answers"}
  assert found.keys() == counts.keys() - kept
  assert found.keys() == {
      "too_short", "empty", "broken", "query_is_passage", "not_unicode", "contaminated", "contaminated_negative",
      "duplicate", "negative_is_positive", "negative_without_positive", "in_other"}
  assert {reason: len(of) for reason, of in found.items()} == {
      reason: min(counts[reason], 20) if reason != "negative_without_positive" else 1 for reason in found}
  assert counts["in_other"] == 100 and len(found["in_other"]) == 20
  shown = {reason: {name: text for name, text in of[0].items() if name not in ("reason", "place", "query_id")}
           for reason, of in found.items()}
  assert shown["too_short"] == {"query": "a", "passage": "b"} and shown["empty"] == {"passage": "no query"}
  assert shown["not_unicode"]["passage"] == r"half \ud83d of it" and "not JSON" in shown["broken"]["why"]
  assert shown["contaminated_negative"] == {"query": "e", "negative": "a relevant document"}
  assert shown["negative_is_positive"] == {"query": "g", "passage": "h", "negative": "i"}
  assert shown["negative_without_positive"] == {"query": "k", "negative": "l"}
  assert all(row["place"].startswith(path) for row in [*found["too_short"], *found["empty"], *found["contaminated"]])
  reference = (folder / "dropped.jsonl").read_bytes()
  folder.rename(data / "one")
  assert (prepare(ToySource((path,)), processes=3, **settings) / "dropped.jsonl").read_bytes() == reference


def test_the_first_of_each_reason_are_kept_whatever_the_parts(data, tmp_path):
  """Of one reason many more than are kept, and of another one only in the last part."""
  lines = [r | {"length": 0} for r in toy_source.rows(300)] + toy_source.rows(100, seed=1) + [
      {"query": "last", "passage": "last"}]
  source = ToySource((write(tmp_path / "a.jsonl", lines),))
  whole, parts = (rows(prepare(dataclasses.replace(source, part_bytes=size), name=name))
                  for name, size in (("whole", 1 << 20), ("parts", 1000)))
  for found in (whole, parts):
    assert [row["reason"] for row in found] == ["too_short"] * 20 + ["query_is_passage"]
    assert [row["query"] for row in found] == [line["query"] for line in lines[:20]] + ["last"]


def test_other_languages(data, tmp_path):
  rows_ = [{"query": "what is high blood pressure", "passage": "High blood pressure is a disease of many."},
           {"query": "was ist hoher Blutdruck", "passage": "Hoher Blutdruck ist eine Krankheit von vielen."},
           {"query": "who is the king", "passage": "le roi et sa fille sont dans la maison", "split": "validation"}]
  path = write(tmp_path / "a.jsonl", rows_)
  folder = prepare(ToySource((path,)), language="en")
  assert [(row["reason"], row["query"]) for row in rows(folder)] == [
      ("language", "was ist hoher Blutdruck"), ("language", "who is the king")]
  assert "py3langid" not in json.loads((folder / "manifest.json").read_text())["filters"]["language"]
  with pytest.raises(InputError, match="prepared from other files or settings"):
    prepare(ToySource((path,)))
  assert rows(prepare(ToySource((path,)), name="any")) == []


def test_a_tally_keeps_few_and_shows_little():
  tally = transforms.Tally()
  for i in range(100):
    tally.drop("contaminated by a query", text=f"{i} " + "x" * 1000)
    tally.drop("other", "file:1", 3, query="")
    assert tally.wants("contaminated by another") is (i < 19)
  assert tally.reasons == {"contaminated": 100, "other": 300} and len(tally.dropped) == 40
  assert len(tally.dropped[0]["text"]) == 300 and tally.dropped[1] == {"reason": "other", "place": "file:1"}
  merged = transforms.Tally()
  merged.keep(tally.dropped[30:])
  merged.keep(tally.dropped)
  assert len(merged.dropped) == 40 and merged.dropped[:10] == tally.dropped[30:]


def post(number, **fields):
  text = f"This is all the text of post {number}."
  return {"id": number, "title": f"What is the title of {number}?", "selftext": text, "author": "a", "subreddit": "s",
          "score": 2} | fields


def comment(number, parent, **fields):
  return {"id": number, "link_id": "t3_p", "parent_id": parent, "body": f"This is what comment {number} has to say.",
          "author": f"author {number}", "subreddit": "s", "score": 2} | fields


def reddit(folder):
  posts = [post("p"), post("q", selftext="[removed]"), post("r", over_18=True), post("s", selftext="short"), post("p"),
           post("t", title="One"), post("u", score=-1), post("v", selftext=""), post("w", selftext="word " * 3000)]
  comments = [comment("a", "t3_p", body="[deleted]"), comment("b", "t1_none"), comment("c", "t3_p", body="no"),
              comment("d", "t3_r", link_id="t3_r"), comment("e", "t3_p", author="AutoModerator")]
  return Reddit((write(folder / "RS.jsonl", posts), write(folder / "RC.jsonl", comments)))


def stack_exchange(folder):
  rows = ['Id="1" PostTypeId="1" Score="1" Title="A title" Body="short" ClosedDate="x"',
          'Id="2" PostTypeId="1" Score="1" Title="A title" Body="short"',
          'Id="3" PostTypeId="1" Score="-1" Title="b" Body="c"',
          'Id="4" PostTypeId="1" Score="1" Title="" Body="without a title"', 'Id="5" PostTypeId="4" Body="a wiki page"',
          'Id="6" PostTypeId="2" ParentId="2" Score="-9" Body="a bad answer it is"',
          'Id="7" PostTypeId="2" ParentId="99" Score="1" Body="an answer to nothing that is there"',
          'Id="8" PostTypeId="2" ParentId="1" Score="1" Body="an answer to what is closed there"',
          'Id="9" PostTypeId="2" ParentId="2" Score="1" Body="brief"',
          'Id="10" PostTypeId="2" ParentId="2" Score="1" Body="gone it is" DeletionDate="x"']
  (folder / "Posts.xml").write_text("<posts>\n" + "".join(f"<row {row} />\n" for row in rows) + "</posts>\n")
  return StackExchange((str(folder / "Posts.xml"),))


def pairs(folder):
  return PairsJsonl((write(folder / "p.jsonl", [
      {"query": "", "positive": "b"}, {"query": "a", "pos": ["b", "c"], "neg": ["B", "d"]},
      {"query": "a", "positive": 7},
      {"query": "one", "positive": "two three"}, {"query": "x " * 99, "positive": "y y y"}]),),
      min_words=2, max_pairs=1, max_characters=99)


def dpr(folder):
  one, two = ({"title": "", "text": text} for text in ("one", "two"))
  return Dpr((write(folder / "d.jsonl", [
      {"question": "", "positive_ctxs": [one]}, {"question": "a", "positive_ctxs": []},
      {"question": "b", "positive_ctxs": [one], "hard_negative_ctxs": [one, two]}, {"question": 3}]),))


def rocketqa(folder):
  (folder / "r.tsv").write_text("a\t\tone\t\tONE\t0\n\t\tone\t1\nb\t\ttwo\t0\nc\n")
  return RocketQA((str(folder / "r.tsv"),))


def judged(folder):
  for name, lines in (("passages.tsv", ("1\tone", "2\t ", "3\tthree", "4\tfour", "5\tfive")),
                      ("queries.tsv", ("a\tfirst", "b\tsecond")),
                      ("qrels.tsv", ("a\t0\t1\t2", "a\t0\t2\t2", "a\t0\t9\t2", "a\t0\t3\t1", "z\t0\t1\t2")),
                      ("negatives.jsonl", ('{"qid": "a", "pos": ["1"], "neg": {"bm25": ["1", "4", "3", "5"]}}',
                                           '{"qid": "y", "pos": [], "neg": {}}')),
                      ("scores.jsonl", ('{"qid": "a", "scores": {"1": 5, "4": 4.5}}',))):
    (folder / name).write_text("".join(line + "\n" for line in lines))
  path = lambda name: str(folder / name)  # noqa: E731
  return JudgedPairs(
      name="j", passages=path("passages.tsv"), queries=(path("queries.tsv"),), qrels=path("qrels.tsv"), min_grade=2,
      cache=path("cache"), negatives=(path("negatives.jsonl"),), scores=path("scores.jsonl"), systems=("bm25",))


def nq_open(folder):
  write(folder / "q.jsonl", [{"question": "who", "answer": ["one"]}, {"question": "what", "answer": ["none"]},
                             {"question": "where", "answer": ["x"]}])
  (folder / "p.tsv").write_text("1\tone\n")
  (folder / "run").write_text("0 Q0 1 1 9 s\n0 Q0 7 2 8 s\n1 Q0 1 1 9 s\n8 Q0 1 1 9 s\n")
  return NqOpen(str(folder / "q.jsonl"), str(folder / "run"), str(folder / "p.tsv"), str(folder / "cache"))


# What is counted, and nothing is left out.
COUNTS = {"posts", "comments", "questions", "answers", "thread_without_post", "question_without_negatives",
          "query_without_negatives"}


@pytest.mark.parametrize(("make", "reasons"), [
    (reddit, {"post_deleted", "post_over_18", "post_title_too_short", "post_score", "post_without_comment",
              "body_empty", "body_too_short", "body_too_long", "comment_deleted", "comment_too_short", "comment_bot",
              "comment_on_over_18", "reply_without_comment", "copy_of_another_dump"}),
    (stack_exchange, {"question_closed", "question_score", "question_without_title", "not_a_question_or_answer",
                      "deleted", "answer_score", "answer_too_short", "answer_without_question",
                      "answer_of_dropped_question", "body_too_short", "question_without_answer"}),
    (pairs, {"empty", "negative_is_positive", "broken", "more_pairs_in_a_line", "too_short", "too_long"}),
    (dpr, {"empty_question", "without_positive", "negative_is_positive", "broken"}),
    (rocketqa, {"query_without_positive", "negative_is_positive", "broken"}),
    (judged, {"query_without_judgement", "negatives_of_unknown_query", "unknown_query", "grade_too_low",
              "unknown_passage", "empty_passage", "negative_is_positive", "negative_without_score",
              "negative_scores_too_high", "query_of_other_systems"}),
    (nq_open, {"unknown_question", "question_without_passages", "unknown_passage", "question_without_positive"}),
])
def test_sources_show_what_they_leave_out(make, reasons, tmp_path):
  source, tally, values = make(tmp_path), transforms.Tally(), {}
  for part in source.parts():
    for key, value in source.read(part, tally):
      values.setdefault(key, []).append(value)
  for key, of_key in values.items():
    if key:
      list(source.join(key, of_key, tally))
  assert tally.reasons.keys() - COUNTS == reasons
  assert {row["reason"] for row in tally.dropped} == reasons
  for row in tally.dropped:
    assert any(text for name, text in row.items() if name not in ("reason", "place")), row
