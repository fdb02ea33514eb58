"""Pairs from dumps of Reddit.

Fields of posts and comments: schemas/RS.ts and schemas/RC.ts of github.com/ArthurHeitmann/arctic_shift; how a comment
names its post and parent also in reddit/testdata/simple_thread.json and reddit/create_data.py of
github.com/PolyAI-LDN/conversational-datasets; the window of the archives in scripts/filter_file.py of
github.com/Watchful1/PushshiftDumps.
"""

import argparse
import json

import pytest
import zstandard
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.io import lines
from gtr_jax.prepare import transforms
from gtr_jax.prepare.sources import reddit, reddit_text
from gtr_jax.prepare.sources.reddit import Reddit


def _post(number, **others):
  return {"id": number, "title": f"What do you think about {number}?",
          "selftext": f"This is the text that post {number} has.", "author": f"author_of_{number}",
          "subreddit": "beer", "subreddit_id": "t5_2qhg1", "score": 5, "created_utc": 1390000000,
          "retrieved_on": 1400000000, "over_18": False, "stickied": False, "is_self": True,
          "distinguished": None, "quarantine": False, "num_comments": 1, "url": "https://www.reddit.com/r/beer",
          "permalink": f"/r/beer/comments/{number}/", **others}


def _comment(number, post, parent=None, **others):
  return {"id": number, "link_id": f"t3_{post}", "parent_id": f"t1_{parent}" if parent else f"t3_{post}",
          "body": f"This is what comment {number} has to say.", "author": f"author_of_{number}", "subreddit": "beer",
          "subreddit_id": "t5_2qhg1", "score": 2, "created_utc": "1390000100", "retrieved_on": 1400000000,
          "controversiality": 0, "stickied": False, "distinguished": None, "gilded": 0, **others}


@pytest.fixture
def dump(tmp_path):
  def write(rows, name):
    path = tmp_path / name
    data = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    if name.endswith(".zst"):  # As with zstd --ultra --long=31.
      window = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=False, hash_log=10, chain_log=10)
      stream = zstandard.ZstdCompressor(compression_params=window).compressobj()
      data = stream.compress(data) + stream.flush()
    path.write_bytes(data)
    return str(path)
  return write


@pytest.fixture
def made(dump):
  """(pairs by query and passage id, reasons of dropping) of posts and comments."""
  def run(posts=(), comments=(), **fields):
    paths = [dump(posts, "RS_2014-01.jsonl")] if posts else []
    paths += [dump(comments, "RC_2014-01.jsonl")] if comments else []
    kinds = ("title_body",) * bool(posts) + ("comment_reply",) * bool(comments)
    fields = {"pairs": (*kinds, *["post_comment"] * (len(kinds) == 2))} | fields
    examples, counts = prepared(Reddit(tuple(paths), **fields))
    assert not counts.places, counts.places
    return {(e.query_id, e.passage_id): e for e in examples}, counts.reasons
  return run


def test_a_thread(made):
  examples, reasons = made([_post("p")], [
      _comment("a", "p", score=2), _comment("b", "p", score=9), _comment("c", "p", "a", score=30),
      _comment("d", "p", "a", score=40), _comment("e", "p", "d")])
  title, text = "What do you think about p?", "This is the text that post p has."
  say = "This is what comment {} has to say.".format
  assert {ids: (e.query, e.passage) for ids, e in examples.items()} == {
      ("t3_p", "t3_p"): (title, text), ("t3_p", "t1_b"): (f"{title}\n{text}", say("b")),  # Not d: it answers to a.
      ("t1_a", "t1_d"): (say("a"), say("d")), ("t1_d", "t1_e"): (say("d"), say("e"))}
  assert {e.group for e in examples.values()} == {"p"}  # All of a thread are of one split.
  assert reasons == {"posts": 1, "comments": 5}


@pytest.mark.parametrize(("pairs", "ids"), [
    ("title_body", ("t3_p", "t3_p")), ("post_comment", ("t3_p", "t1_a")), ("comment_reply", ("t1_a", "t1_b")),
])
def test_each_kind_of_pair_alone(made, pairs, ids):
  assert made([_post("p")], [_comment("a", "p"), _comment("b", "p", "a")], pairs=(pairs,))[0].keys() == {ids}


def test_a_link_has_a_title_only(made):
  examples, reasons = made([_post("p", selftext="", is_self=False)], [_comment("a", "p")])
  assert examples.keys() == {("t3_p", "t1_a")} and reasons["body_empty"] == 1
  assert examples["t3_p", "t1_a"].query == "What do you think about p?"


@pytest.mark.parametrize(("reason", "fields", "comments_go"), [
    ("over_18", {"over_18": True}, True), ("over_18", {"sr_detail": {"over_18": True}}, True),
    ("quarantined", {"quarantine": True}, True), ("deleted", {"selftext": "[deleted]"}, False),
    ("deleted", {"selftext": "[removed]"}, False), ("deleted", {"title": "[deleted by user]"}, False),
    ("deleted", {"removed_by_category": "moderator"}, False),
    ("deleted", {"_meta": {"was_deleted_later": True}}, False),
    ("deleted", {"_meta": {"removal_type": "moderator"}}, False), ("deleted", {"removed": True}, False),
    ("deleted", {"spam": True}, False),
    ("bot", {"author": "AutoModerator"}, False), ("bot", {"author": "dadbot_2"}, False),
    ("bot", {"author": "autowikibot"}, False),
    ("bot", {"author": "listed"}, False), ("bot", {"selftext": "Beep boop, I am a bot."}, False),
    ("official", {"stickied": True}, False), ("official", {"distinguished": "moderator"}, False),
    ("official", {"promoted": True}, False), ("subreddit", {"subreddit": "Wine"}, False),
    ("score", {"score": 0}, False), ("title_too_short", {"title": "Two words"}, False),
])
def test_posts_that_are_dropped(made, reason, fields, comments_go):
  examples, reasons = made([_post("p", **fields), _post("q")], [_comment("a", "p"), _comment("b", "p", "a")],
                           bots=("Listed",), without_subreddits=("r/wine",))
  assert reasons[f"post_{reason}"] == 1
  assert examples.keys() == {("t3_q", "t3_q")} | (set() if comments_go else {("t1_a", "t1_b")})
  assert reasons[f"comment_on_{reason}"] == (2 if comments_go else 0)


@pytest.mark.parametrize("author", ["redrobot5050", "Nanobot", "D-Bot2000", "botanist", "Abbot_of_x"])
def test_people_are_no_bots(made, author):
  assert len(made([_post("p", author=author)])[0]) == 1


def test_a_body_that_is_its_title(made):
  posts = [_post("p", title="Have you ever dated someone?", selftext="have you ever  dated someone"), _post("q")]
  examples, tally = made(posts)[0], transforms.Tally()
  kept = [e.query_id for e in examples.values() if transforms.pair_of(transforms.Plan(None), e, tally)]
  assert kept == ["t3_q"] and tally.reasons == {"query_is_passage": 1}


@pytest.mark.parametrize(("reason", "fields"), [
    ("deleted", {"body": "[deleted]", "author": "[deleted]"}), ("deleted", {"body": "[ Removed by Reddit ]"}),
    ("deleted", {"removed": True}), ("deleted", {"_meta": {"removal_type": "deleted"}}),
    ("bot", {"author": "RemindMeBot"}), ("bot", {"body": "Your link is broken. I'm just a bot, do not answer me."}),
    ("official", {"distinguished": "admin"}), ("quarantined", {"quarantined": True}), ("score", {"score": -3}),
    ("too_short", {"body": "me too"}), ("too_long", {"body": "long and " * 1001}),
    ("empty", {"body": "&gt; only a quote"}),
    ("subreddit", {"subreddit": "wine"}),
])
def test_comments_that_are_dropped(made, reason, fields):
  examples, reasons = made([_post("p")], [_comment("a", "p", **{"score": 99} | fields), _comment("b", "p", score=3)],
                           without_subreddits=("wine",))
  assert ("t3_p", "t1_b") in examples
  assert reasons[f"comment_{reason}"] == 1


def test_filters_can_be_turned_off(made):
  posts = [_post("p", over_18=True), _post("q", quarantine=True), _post("r", stickied=True), _post("s", score=-5),
           _post("t", title="Was trinkt ihr gerade?", selftext="Ich trinke heute ein dunkles Bier aus der Stadt hier."),
           _post("u", selftext="x " * 2500, title="Some long post this is")]
  examples, _ = made(posts, over_18=True, quarantined=True, official=True, min_post_score=-9, max_words=2500)
  assert len(examples) == 6
  assert not made(posts[:1], over_18=True, min_words=99)[0] and not made(posts[:1], over_18=True, max_characters=9)[0]
  assert not made(posts[:1], over_18=True, min_characters=999)[0]


def test_the_best_comment_is_the_same_in_any_order(made):
  comments = [_comment("z", "p", score=7), _comment("10", "p", score=7, created_utc=1390000099),
              _comment("y", "p", score=7), _comment("x", "p", score=None),
              _comment("own", "p", score=99, author="author_of_p"), _comment("gone", "p", score=7, author="[deleted]")]
  for order in (comments, comments[::-1]):
    assert made([_post("p", score=None)], order, pairs=("post_comment",))[0].keys() == {("t3_p", "t1_10")}
  comments[1]["created_utc"] = "1390000100.0"  # Then y is before z and 10.
  comments[-1]["score"] = 0
  for order in (comments, comments[::-1]):
    assert made([_post("p", score=None)], order, pairs=("post_comment",))[0].keys() == {("t3_p", "t1_y")}


def test_orphans_are_counted(made):
  comments = [_comment("a", "other"), _comment("b", "other", "a"), _comment("c", "p", "none")]
  examples, reasons = made([_post("p")], comments)
  assert examples.keys() == {("t3_p", "t3_p"), ("t1_a", "t1_b")}
  assert reasons == {"posts": 1, "comments": 3, "thread_without_post": 1, "reply_without_comment": 1,
                     "post_without_comment": 1}


def test_copies_in_several_dumps(dump):
  """What was retrieved last counts, whatever the order of the files."""
  first = dump([_post("p", title="An older title it was"), _post("q")], "a.jsonl")
  last = dump([_post("p", title="An edited title it is", retrieved_on=None, retrieved_utc=1500000000),
               _post("q", selftext="[removed]", _meta={"retrieved_2nd_on": 1500000000})], "b.jsonl")
  for paths in ((first, last), (last, first)):
    examples, counts = prepared(Reddit(paths, pairs=("title_body",)))
    assert [e.query for e in examples] == ["An edited title it is"]
    assert counts.reasons["copy_of_another_dump"] == 2
  comments = dump([_comment("a", "p"), _comment("b", "p"), _comment("c", "p", "a")], "RC.jsonl")
  for change in ({"body": "[removed]"}, {"score": -4}, {"body": "no"}):
    later = dump([_comment("a", "p", retrieved_on=1500000000, **change)], "RC_later.jsonl")
    for paths in ((first, comments, later), (later, comments, first)):
      examples, _ = prepared(Reddit(paths))
      assert {e.passage_id for e in examples} == {"t3_p", "t3_q", "t1_b"}
  twice = dump([_comment("a", "p", body="The first of two copies it is."), _comment("a", "p"), _comment("b", "p", "a")],
               "c.jsonl")
  assert [e.query for e in prepared(Reddit((twice,), ("comment_reply",)))[0]] == ["The first of two copies it is."]


def test_broken_lines_are_counted(dump):
  rows = [_post("p"), '{"id": "q", "title": "cut', "[]", "7", {"id": "r"}, {"id": "s", "title": None},
          _post("t", score="x"), _post("i", score=float("inf")), {"id": "u", "body": "x", "link_id": "t3_p"},
          _comment("v", "p", parent_id=123), _comment("w", "p", link_id="p"), _post("x", _meta="?"), _post(3),
          _post("y")]
  path = dump(rows, "RS.jsonl")
  with open(path, "ab") as f:
    f.write(b'{"id": "z", "title": "\xe9"}\n')
  examples, counts = prepared(Reddit((path,), ("title_body",)))
  assert [e.query_id for e in examples] == ["t3_p", "t3_y"]
  assert counts.reasons == {"broken": 13, "posts": 5}
  assert [int(place.split(":")[1]) for place in counts.places] == list(range(2, 14)) + [15]
  assert "no field 'parent_id', only id, body, link_id" in "".join(counts.places)


def test_half_characters_and_no_author(made):
  post = _post("p", title="A cut \ud83d emoji \u200bin it", author=None, selftext="Some \x00 text 😀 that is it")
  examples, _ = made([post])
  (example,) = examples.values()
  assert (example.query, example.passage) == ("A cut emoji in it", "Some text 😀 that is it")
  example.query.encode()


def test_zst_with_a_long_window_and_cut_off(dump, tmp_path):
  posts = [_post(f"p{i}") for i in range(300)]
  path = dump(posts, "RS_2014-01.zst")
  assert zstandard.get_frame_parameters(open(path, "rb").read(20)).window_size == 2**31  # noqa: SIM115
  assert len(prepared(Reddit((path,), ("title_body",)))[0]) == 300
  cut = tmp_path / "RS_cut.zst"
  cut.write_bytes((tmp_path / "RS_2014-01.zst").read_bytes()[:-50])
  with pytest.raises(InputError, match="RS_cut.zst: the archive is cut off .*fetch it again"):
    prepared(Reddit((str(cut),), ("title_body",)))


def test_byte_ranges_are_the_whole_file(dump, monkeypatch):
  source = Reddit((dump([_post(f"p{i}") for i in range(50)], "RS.jsonl"),
                   dump([_comment(f"c{i}", f"p{i // 2}") for i in range(100)], "RC.jsonl")))
  whole = prepared(source)[0]
  monkeypatch.setattr(lines, "line_parts", lambda paths, size=999, kind="", of=lines.line_parts: of(paths, size, kind))
  assert len(source.parts()) > 50
  assert sorted(prepared(source)[0]) == sorted(whole) and len(whole) == 100


def test_files_of_another_kind_are_refused(dump):
  with pytest.raises(InputError, match="its first object has title, body; .* use the source pairs"):
    Reddit((dump([{"title": "a", "body": "b"}], "pairs.jsonl"),)).parts()
  with pytest.raises(InputError, match="it has no JSON object"):
    Reddit((dump(["<posts>"], "Posts.xml"),)).parts()
  posts, comments = dump([_post("p")], "RS"), dump([_comment("a", "p")], "RC")
  with pytest.raises(InputError, match="post_comment needs comments, and .* give RC_"):
    Reddit((posts,)).parts()
  with pytest.raises(InputError, match="title_body needs posts, and .* give RS_"):
    Reddit((comments,)).parts()
  with pytest.raises(InputError, match="choose of title_body, post_comment, comment_reply"):
    Reddit((posts,), ("body_title",))
  with pytest.raises(InputError, match="no such file"):
    Reddit(("RS_none.zst",)).parts()


def test_flags_are_the_fields(tmp_path):
  parser = argparse.ArgumentParser()
  reddit.add_arguments(parser)
  assert reddit.source(parser.parse_args(["RS.zst"])) == Reddit(("RS.zst",))
  (tmp_path / "bots").write_text("One\n\ntwo\n")
  given = ("a b --pairs title_body --min_post_score 1 --min_comment_score 2 --min_title_words 3 --min_words 4 "
           "--max_words 5 --min_characters 6 --max_characters 7 --over_18 --quarantined --official "
           f"--bots {tmp_path}/bots --without_subreddits {tmp_path}/bots")
  assert reddit.source(parser.parse_args(given.split())) == Reddit(
      ("a", "b"), ("title_body",), 1, 2, 3, 4, 5, 6, 7, True, True, True, ("One", "two"), ("One", "two"))


@pytest.mark.parametrize(("markdown", "text"), [
    ("one &amp;amp; two &lt; three&amp;nbsp;&amp;#x200B; four", "one & two < three four"),
    ("**bold**, *it*, ***both***, __b__ _i_ ~~gone~~ **b _in_ b**", "bold, it, both, b i gone b in b"),
    ("2*3*4 snake_case_name a * b \\*not it\\* \\_x", "2*3*4 snake_case_name a * b *not it* _x"),
    ("[a [link](https://en.wikipedia.org/wiki/X_(y\\)) and [b](/r/beer \"t\") [not] (one)",
     "[a link and b [not] (one)"),
    ("see https://x.com/a_b?c=d&amp;e=f. www.foo.com and <http://y.z>!", "see and !"),
    ("![img](abc123) ![gif](giphy|x|y) text", "text"),
    ("# Head\n\n---\n***\n* one\n- two\n+ three\n1. four", "Head\n- one\n- two\n- three\n1. four"),
    ("```\ncode(x)\n```\n    more `code`", "code(x)\nmore code"),
    ("|a|b|\n|:--|--:|\n|1|2|", "|a|b|\n|1|2|"),
    ("^(small words) ^^tiny 2^10 &gt;!hidden!&lt;", "small words tiny 2^10 hidden"),
    ("&gt; quoted\n&gt;&gt; twice\n\nsaid", "said"), ("", ""),
    # As in dumps of 2006: RC_2006-02 and -03.
    ("[Less than 2% die.](  http://www-medlib.med.utah.edu/a.html)", "Less than 2% die."),
    ("**He is with us in\r\nchoosing a range!** No.", "He is with us in\nchoosing a range! No."),
    ("on my site ( http://chir.ag/stuff/sand/ ) was", "on my site was"),
    ("[[vid]]() and [x](https://y.org/Foo_(bar_(baz))) f()", "[vid] and x f()"),
    ("*one\n*two and f() at www.a.com", "*one\n*two and f() at"),
])
def test_markdown_to_text(markdown, text):
  assert reddit_text.plain_text(markdown, quotes=False) == text


def test_quotes_of_posts_stay():
  assert reddit_text.plain_text("&gt; quoted\n\nsaid", quotes=True) == "quoted\nsaid"
