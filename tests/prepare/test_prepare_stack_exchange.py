"""Questions and answers from dumps of Stack Exchange.

The attributes of a row are those of https://meta.stackexchange.com/q/2677 and of the example row in
StackExchangeAnalysis/src/README.txt of github.com/siva1987c/Stack-Exchange-Analysis-MapReduce.
"""

import argparse
import gzip
import html.parser
import itertools
import random
from xml.sax.saxutils import quoteattr

import pytest
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.io import lines
from gtr_jax.prepare.interface import Counts, Example
from gtr_jax.prepare.sources import stack_exchange
from gtr_jax.prepare.sources.html_text import html_to_text
from gtr_jax.prepare.sources.stack_exchange import StackExchange

_TEXT = "<p>words enough for a text of some length</p>"


def _row(number, kind=1, body=_TEXT, **others):
  fields = {"Id": number, "PostTypeId": kind, "Score": 1, "Body": body, "CreationDate": "2014-01-21T20:26:05.383",
            "LastActivityDate": "2014-01-21T20:26:05.383"}
  if kind == 1:
    fields |= {"Title": f"Title {number}?", "Tags": "<hops>"}
  fields |= others
  entities = {"\n": "&#xA;", '"': "&quot;"}  # As .NET writes them.
  return "  <row " + " ".join(f"{name}={quoteattr(str(value), entities)}" for name, value in fields.items()) + " />"


def _dump(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(
      ['<?xml version="1.0" encoding="utf-8"?>', "<posts>", *rows, "</posts>", ""]).encode())
  return str(path)


@pytest.fixture
def dump(tmp_path):
  return lambda rows, name="beer.stackexchange.com/Posts.xml": _dump(tmp_path / name, rows)


def _pairs(source, kind):
  examples, _ = prepared(source)
  return {e.query_id.rpartition("/")[2]: e for e in examples if (e.query_id == e.passage_id) == (kind == "title_body")}


def test_titles_bodies_and_answers(dump):
  path = dump([
      _row(1, AcceptedAnswerId=4, Title='What is a "citra" hop &amp; why?',
           body='<p>I &amp; you: "hops" &lt;b&gt;</p>\n<p>a second paragraph here</p>\n'),
      _row(4, 2, "<p>An answer of five words</p>", ParentId=1),
      _row(5, 2, "<p>A better answer, not accepted</p>", ParentId=1, Score=20),
  ])
  examples, counts = prepared(StackExchange((path,)))
  body, answer = examples
  site = "beer.stackexchange.com"
  number = f"{site}/1"
  assert body == Example('What is a "citra" hop &amp; why?', 'I & you: "hops" <b>\na second paragraph here', number,
                         number, group=number)
  assert answer.query == f"{body.query}\n{body.passage}"
  assert (answer.passage, answer.query_id, answer.passage_id) == ("An answer of five words", f"{site}/1", f"{site}/4")
  assert answer.group == body.group
  assert counts.reasons == {"questions": 1, "answers": 2}


@pytest.mark.parametrize(("answers", "best"), [
    ([(2, 3, True), (3, 9, False)], 2),  # The accepted one, whatever the others have.
    ([(2, 0, True), (3, 9, False)], 2),
    ([(2, -1, True), (3, 9, False)], 3),  # Unless readers say that it is wrong.
    ([(2, 3, False), (3, 9, False)], 3),
    ([(10, 9, False), (9, 9, False)], 9),  # Of equals the older, as a number.
    ([(2, 0, False)], None),
    ([], None),
])
def test_the_answer_of_a_question(dump, answers, best):
  accepted = [number for number, _, is_accepted in answers if is_accepted]
  rows = [_row(1, **({"AcceptedAnswerId": accepted[0]} if accepted else {}))]
  rows += [_row(n, 2, ParentId=1, Score=score) for n, score, _ in answers]
  for order in (rows, rows[::-1]):
    source = StackExchange((dump(order),))
    answer = _pairs(source, "question_answer").get("1")
    assert (answer.passage_id if answer else None) == (best and f"beer.stackexchange.com/{best}")
    assert (prepared(source)[1].reasons["question_without_answer"] == 1) == (best is None)


def test_filters_are_counted(dump):
  rows = [
      _row(1, Score=-1), _row(2, 2, ParentId=1), _row(3, ClosedDate="2014-01-21T20:26:05.383"), _row(4, 2, ParentId=3),
      _row(5, DeletionDate="2014-01-21T20:26:05.383"), _row(6, 2, ParentId=99), _row(7, body="<p>too short</p>"),
      _row(8, body="long " * 5000), _row(9, 5), _row(10, 2, "<p><img src='x'></p>", ParentId=7),
      _row(11, 2, ParentId=7, Score=-4), _row(12, 2, ParentId=7, DeletionDate="2014-01-21T20:26:05.383"),
      _row(13, Title=" "),
  ]
  path = dump(rows)
  examples, counts = prepared(StackExchange((path,)))
  assert not examples and not counts.places
  assert counts.reasons == {
      "questions": 6, "answers": 6, "question_score": 1, "question_closed": 1, "deleted": 2,
      "question_without_title": 1, "answer_of_dropped_question": 2, "answer_without_question": 1, "body_too_short": 1,
      "body_too_long": 1,
      "not_a_question_or_answer": 1, "answer_too_short": 1, "answer_score": 1, "question_without_answer": 2}
  kept = _pairs(StackExchange((path,), closed=True, min_question_score=-5, max_characters=30_000, min_words=2),
                "title_body")
  assert kept.keys() == {"1", "3", "7", "8"}
  assert not _pairs(StackExchange((path,), pairs=("question_answer",), closed=True), "title_body")


def test_copies_in_several_dumps(tmp_path):
  old, new = "2014-01-21T20:26:05.383", "2024-01-21T20:26:05.383"
  first = _dump(tmp_path / "2014/a.com/Posts.xml", [_row(1, Title="old", LastActivityDate=old), _row(2), _row(3)])
  last = _dump(tmp_path / "2024/a.com/Posts.xml", [_row(1, Title="new", LastActivityDate=new),
                                                    _row(2, ClosedDate=new, LastActivityDate=new)])
  other = _dump(tmp_path / "2024/b.com/Posts.xml", [_row(1, Title="other site")])
  for paths in [(first, last, other), (other, last, first)]:
    examples, counts = prepared(StackExchange(paths, pairs=("title_body",)))
    assert {e.query_id: e.query for e in examples} == {"a.com/1": "new", "a.com/3": "Title 3?", "b.com/1": "other site"}
    assert counts.reasons["copy_of_another_dump"] == 2


@pytest.mark.parametrize("change", [{"Score": -4}, {"DeletionDate": "2024-01-21"}, {"body": "<p>gone</p>"}])
def test_an_answer_that_a_later_dump_would_not_give(tmp_path, change):
  """Votes do not change when a post was last active."""
  first = _dump(tmp_path / "2014/a.com/Posts.xml", [_row(1), _row(2, 2, ParentId=1, Score=9), _row(3, 2, ParentId=1)])
  last = _dump(tmp_path / "2024/a.com/Posts.xml", [_row(1), _row(2, 2, ParentId=1, **change)])
  for paths in [(first, last), (last, first)]:
    assert _pairs(StackExchange(paths), "question_answer")["1"].passage_id == "a.com/3"


def test_broken_rows_are_counted(dump):
  rows = [_row(1), _row(2)[:-30], "<row>", "garbage", '  <row Id="7" Score="1" />', _row(3, Score="many"), _row(4),
          '  <row Id="8" PostTypeId="2" Score="1" Body="x" />']
  examples, counts = prepared(StackExchange((dump(rows),), pairs=("title_body", "question_answer")))
  assert [e.query for e in examples] == ["Title 1?", "Title 4?"]
  assert counts.reasons["broken"] == 6
  assert [int(p.split(":")[1]) for p in counts.places] == [4, 5, 6, 7, 8, 10]
  assert "no PostTypeId, only Id, Score" in counts.places[3] and "'many'" in counts.places[4]
  assert "no ParentId" in counts.places[5]


def test_a_file_that_is_cut_off(dump, tmp_path):
  path = tmp_path / "beer.stackexchange.com/Posts.xml"
  dump([_row(n) for n in range(5)])
  for end, found in [(path.read_bytes().index(b"</posts>"), 5), (path.read_bytes().index(b'Id="4"') - 7, 4)]:
    path.write_bytes(path.read_bytes()[:end])
    with pytest.raises(InputError, match="Posts.xml: ends without </posts>: cut off; fetch it again"):
      StackExchange((str(path),)).parts()
    packed = tmp_path / "beer.stackexchange.com/Posts.xml.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    counts, source = Counts(), StackExchange((str(packed),), pairs=("title_body",))
    read = source.read(*source.parts(), counts)
    assert len(list(itertools.islice(read, found))) == found
    with pytest.raises(InputError, match="Posts.xml.gz: ends without </posts>: cut off; fetch it again"):
      list(read)


def test_what_xml_forbids(dump, tmp_path):
  """Control characters, by number or raw, go; other bad bytes are broken lines."""
  path = tmp_path / "beer.stackexchange.com/Posts.xml"
  dump([_row(1, body="<p>one two three four five X é Y</p>"), _row(2), _row(3)])
  raw = path.read_bytes().replace(b"X", b"&#x1F;&#0;&#xD800;\x0b", 1).replace(b"Title 2", b"Title \xff", 1)
  path.write_bytes(raw)
  examples, counts = prepared(StackExchange((str(path),), pairs=("title_body",)))
  assert [e.passage for e in examples] == ["one two three four five é Y", "words enough for a text of some length"]
  assert counts.reasons["broken"] == 1 and "Posts.xml:4: not UTF-8 (invalid start byte)" in counts.places[0]


def test_byte_ranges_are_the_whole_file(dump, monkeypatch):
  rows = [_row(n, AcceptedAnswerId=n + 1000, body=f"<p>{'é' * (n % 50)} some more words are here</p>")
          for n in range(1, 200)]
  rows += [_row(n, 2, ParentId=n - 1000) for n in range(1001, 1200)]
  source = StackExchange((dump(rows),))
  whole = prepared(source)[0]
  monkeypatch.setattr(lines, "line_parts", lambda paths, size=777, kind="", of=lines.line_parts: of(paths, size, kind))
  assert len(source.parts()) > 50
  assert sorted(prepared(source)[0]) == sorted(whole) and len(whole) == 398


def test_a_folder_of_sites(tmp_path):
  for site in ("a.com", "b.com"):
    _dump(tmp_path / site / "Posts.xml", [_row(1)])
    (tmp_path / site / "Votes.xml").write_text("<votes/>")
  (tmp_path / "Posts.xml.gz").write_bytes(gzip.compress((tmp_path / "a.com/Posts.xml").read_bytes(), mtime=0))
  sources = (StackExchange((str(tmp_path),), pairs=("title_body",)), StackExchange((str(tmp_path / "a.com"),)))
  assert sorted(e.query_id for e in prepared(sources[0])[0]) == ["a.com/1", "b.com/1", f"{tmp_path.name}/1"]
  assert [e.query_id for e in prepared(sources[1])[0]] == ["a.com/1"]
  with pytest.raises(InputError, match="no Posts.xml and no .7z in it"):
    (tmp_path / "empty").mkdir()
    StackExchange((str(tmp_path / "empty"),)).parts()


def test_other_files_are_refused(tmp_path):
  comments = tmp_path / "Comments.xml"
  comments.write_text('<?xml version="1.0"?>\n<comments>\n  <row Id="1" PostId="2" Score="0" Text="x" />\n</comments>')
  with pytest.raises(InputError, match="Comments.xml: not the Posts.xml .* begins with '<comments>'"):
    StackExchange((str(comments),)).parts()
  comments.write_text('<row Id="1" PostId="2" Score="0" Text="x" />')
  with pytest.raises(InputError, match="its rows have Id, PostId, Score, Text"):
    StackExchange((str(comments),)).parts()
  with pytest.raises(InputError, match="no such file"):
    StackExchange((str(tmp_path / "none.xml"),)).parts()
  with pytest.raises(InputError, match="choose of title_body, question_answer"):
    StackExchange((str(comments),), pairs=("title_answer",))


def test_seven_zip(tmp_path, monkeypatch):
  py7zr = pytest.importorskip("py7zr")
  words = random.Random(0)
  rows = [_row(n, body=f"<p>{' '.join(str(words.random()) for _ in range(20))}</p>") for n in range(2000)]
  path = _dump(tmp_path / "beer.stackexchange.com/Posts.xml", rows)
  archive = tmp_path / "beer.stackexchange.com.7z"
  with py7zr.SevenZipFile(archive, "w") as f:
    f.write(path, "Posts.xml")
    f.writestr("<votes/>", "Votes.xml")
  read = []
  monkeypatch.setattr(lines.progress, "on_bytes", read.append)
  assert prepared(StackExchange((str(archive),)))[0] == prepared(StackExchange((path,)))[0]
  data = archive.read_bytes()
  assert sum(read) >= 0.9 * len(data)
  damaged = len(data) // 2
  for bad in (data[:damaged], data[:damaged] + bytes(100) + data[damaged + 100:]):
    archive.write_bytes(bad)
    with pytest.raises(InputError, match="7z: the archive is cut off or damaged"):
      prepared(StackExchange((str(archive),)))
  with py7zr.SevenZipFile(archive, "w") as f:
    f.writestr("<posts>\n" + _row(1), "Posts.xml")
  with pytest.raises(InputError, match="com.7z: ends without </posts>: cut off; fetch it again"):
    prepared(StackExchange((str(archive),)))
  with py7zr.SevenZipFile(archive, "w") as f:
    f.writestr("<votes/>", "Votes.xml")
  with pytest.raises(InputError, match="no Posts.xml in it, only Votes.xml"):
    StackExchange((str(archive),)).parts()


def test_seven_zip_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "py7zr", None)
  (tmp_path / "a.7z").write_bytes(b"7z")
  with pytest.raises(InputError, match=r"pip install 'gtr_jax\[7z\]'; or unpack it"):
    StackExchange((str(tmp_path / "a.7z"),)).parts()


def test_flags_are_the_fields():
  parser = argparse.ArgumentParser()
  stack_exchange.add_arguments(parser)
  assert stack_exchange.source(parser.parse_args(["Posts.xml"])) == StackExchange(("Posts.xml",))
  given = "a b --pairs title_body --min_question_score 2 --min_answer_score 3 --min_words 4 --max_characters 5 --closed"
  assert stack_exchange.source(parser.parse_args(given.split())) == StackExchange(
      ("a", "b"), ("title_body",), 2, 3, 4, 5, True)


@pytest.mark.parametrize(("source", "text"), [
    ("<p>one\n two&nbsp;three</p>\n\n<p>four</p>", "one two three\nfour"),
    ("<p>use <code>a &lt; b</code>, <em>not</em> <a href='x'>this <b>link</b></a></p>", "use a < b, not this link"),
    ("<pre class=\"a>b\"><code>for i in x:\n    print(i)\n\n    # &lt;b&gt;\n</code></pre><p>so</p>",
     "for i in x:\n    print(i)\n\n    # <b>\nso"),
    ("<ul><li>a</li><li><p>b</p><p>c</p><ol><li>d<li>e</ol></li></ul>f", "- a\n- b\n  c\n  1. d\n  2. e\nf"),
    ("<blockquote><p>a</p><pre>b\n c</pre></blockquote>d", "> a\n> b\n>  c\nd"),
    ("a<br>b<br/>c <img src='x' alt='d'> <hr>e", "a\nb\nc\ne"),
    ("10<sup>3</sup> m<sup>-1</sup> the 1<sup>st</sup> H<sub>2</sub>O", "10^3 m^-1 the 1st H2O"),
    ("<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td>2 | 3</td></tr></table>", "A | B\n1 | 2 | 3"),
    ("a <!-- <p>no</p> --> b<script>c < d</script><style>e</style> f", "a b f"),
    ("a<script>b</b> <script></p>c</script>d<style></script></style>", "ad"),
    ("1 < 2 and a <b and &amp;lt; stays &lt;", "1 < 2 and a <b and &lt; stays <"),
    ("<pre>never closed\n  x", "never closed\n  x"), ("</blockquote></ul></pre><li>a", "- a"), ("", ""),
    ("<p> </p>", ""),
])
def test_html_to_text(source, text):
  assert html_to_text(source) == text


def test_html_loses_no_word():
  """Against the parser of the standard library, on random nestings."""

  class Words(html.parser.HTMLParser):

    def __init__(self):
      super().__init__()
      self.words = []

    def handle_data(self, data):
      self.words += data.split()

  rng = random.Random(0)

  def some(depth):
    if depth == 0 or rng.random() < 0.2:
      words = ["w&amp;w", "&lt;p&gt;", "x" * 9, "é", "&quot;"]
      return " ".join(rng.choice(words) + str(rng.random()) for _ in range(3))
    tag = rng.choice(["p", "div", "ul", "ol", "li", "blockquote", "pre", "code", "strong", "em", "h2", "td", "tr"])
    return f"\n<{tag} title='a>b'> {some(depth - 1)} </{tag}> {some(depth - 1)}"

  for _ in range(200):
    source = some(5)
    parser = Words()
    parser.feed(source)
    parser.close()
    found = [w for w in html_to_text(source).split() if w not in (">", "|", "-") and not w.rstrip(".").isdigit()]
    assert found == parser.words
