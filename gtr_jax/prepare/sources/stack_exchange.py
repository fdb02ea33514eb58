"""Pairs from the public dumps of Stack Exchange sites: `Posts.xml`, or a site's `.7z`.

Fields: https://meta.stackexchange.com/q/2677, "Database schema documentation for the public data dump and SEDE".
"""

import argparse
import contextlib
import dataclasses
import os
import re
from collections.abc import Generator, Iterator
from typing import Any, ClassVar
from xml.parsers import expat

from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.io import flags, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare import seven_zip
from gtr_jax.prepare.interface import Counts, Example, newest
from gtr_jax.prepare.sources.html_text import html_to_text
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative, Positive

PAIRS = ("title_body", "question_answer")
_QUESTION, _ANSWER = "1", "2"
_TABLES = re.compile(r"-(?!Posts)[A-Z][A-Za-z]+\.7z$")  # stackoverflow.com-Votes.7z: of the largest site, by table.
# What XML 1.0 forbids, in numbers or raw; some dumps have such characters all the same.
_FORBIDDEN = re.compile(rb"&#(?:x0*(?:[0-8bcefBCEF]|1[0-9a-fA-F]|[dD][89a-fA-F][0-9a-fA-F]{2}|[fF]{3}[eEfF])|"
                        rb"0*(?:[0-8]|1[124-9]|2[0-9]|3[01]));|[\x00-\x08\x0b\x0c\x0e-\x1f]")


@dataclasses.dataclass(frozen=True)
class StackExchange:
  """Questions and answers of one or more sites. A post that is in several dumps counts as in the latest.

  Attributes:
    paths: `Posts.xml` (also .gz, .bz2, .xz, .zst), a site's .7z, or folders that hold either, or folders of sites. A
      site is named by its archive or its folder (two of one name are two dumps of one site); ids are `site/number`, so
      that the pairs of a question know of each other.
    pairs: what to make: `title_body` (title -> text of the question) and `question_answer` (title and text -> accepted
      answer, or where none is accepted, the one with the highest score, the oldest of equals).
    min_question_score: questions below are dropped, with their answers.
    min_answer_score: answers below are dropped; an accepted one is kept from 0 up.
    min_words: shorter texts of questions, and answers, are dropped.
    max_characters: longer ones too; 512 tokens are about 2,500 characters.
    closed: keep closed questions: duplicates, off topic, unclear.
  """

  name: ClassVar[str] = "stack_exchange"
  licence: ClassVar[str] = (
      "Stack Exchange's contributors, CC BY-SA: 2.5 of what was written before 8 April 2011, 3.0 until 1 May 2018, 4.0 "
      "since (https://stackoverflow.com/help/licensing); attribution is due to each author")
  listed: ClassVar[tuple[str, ...]] = ("paths",)
  paths: tuple[str, ...]
  pairs: tuple[str, ...] = PAIRS
  min_question_score: int = 0
  min_answer_score: int = 1
  min_words: NonNegative = 5
  max_characters: Positive = 20_000
  closed: bool = False

  def __post_init__(self):
    check_fields(self)
    if not self.pairs or not set(self.pairs) <= set(PAIRS):
      raise InputError(f"pairs {', '.join(self.pairs) or 'none'}: choose of {', '.join(PAIRS)}")

  def parts(self) -> list[Part]:
    """Byte ranges of plain files, archives whole. Raises InputError where a file is not of this kind."""
    parts = []
    for path in _files(self.paths):
      site = _site(path)
      file_parts = [Part(path)] if path.endswith(".7z") else lines.line_parts([path])
      _check(Part(path, kind=site))
      parts += [part._replace(kind=site) for part in file_parts]
    return parts

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    """Yields (`site/question`, [type, id, date, text, ...]); the text is None where the post is not to be used."""
    for place, row in _rows(part):
      try:
        post = _attributes(row)
        kind, number = post["PostTypeId"], post["Id"]
        if kind == _QUESTION:
          yield f"{part.kind}/{number}", self._question(post, place, counts)
        elif kind == _ANSWER:
          question = post["ParentId"]
          if "question_answer" in self.pairs:
            yield f"{part.kind}/{question}", self._answer(post, place, counts)
        else:
          counts.drop("not_a_question_or_answer", place, text=post.get("Body", ""), id=number)
      except expat.ExpatError as e:
        counts.broken(place, lines.not_utf8(row) or f"not a row of XML ({e})")
      except KeyError as e:
        counts.broken(place, f"no {e.args[0]}, only {', '.join(post)}")
      except ValueError:
        counts.broken(place, f"score {post['Score']!r} is not a number")

  def _question(self, post, place, counts):
    counts.add("questions")
    reason = ("deleted" if "DeletionDate" in post else
              "question_closed" if "ClosedDate" in post and not self.closed else
              "question_score" if int(post["Score"]) < self.min_question_score else None)
    title = " ".join(post["Title"].split())
    if not reason and not title:
      reason = "question_without_title"
    if reason:  # Answers must learn of it, and so must older dumps' copies.
      counts.drop(reason, place, title=title, text=post.get("Body", ""), id=post["Id"])
      return [_QUESTION, post["Id"], _date(post), None, "", ""]
    return [_QUESTION, post["Id"], _date(post), title, html_to_text(post["Body"]), post.get("AcceptedAnswerId", "")]

  def _answer(self, post, place, counts):
    counts.add("answers")
    score = int(post["Score"])
    reason = "deleted" if "DeletionDate" in post else "answer_score" if score < min(0, self.min_answer_score) else None
    if reason:
      counts.drop(reason, place, text=post.get("Body", ""), id=post["Id"])
    elif self._fits(text := html_to_text(post["Body"]), "answer", counts, place):
      return [_ANSWER, post["Id"], _date(post), text, score]
    return [_ANSWER, post["Id"], _date(post), None, score]  # Older dumps' copies must learn of it.

  def _fits(self, text, what, counts, place="", **texts):
    if len(text) > self.max_characters:
      counts.drop(f"{what}_too_long", place, **texts, text=text)
    elif len(text.split(None, self.min_words)) < self.min_words:
      counts.drop(f"{what}_too_short", place, **texts, text=text)
    else:
      return True
    return False

  def join(self, key: str, values: list[Any], counts: Counts) -> Iterator[Example]:
    """The pairs of one question, from it and its answers."""
    posts = newest(values, counts)
    site, _, number = key.rpartition("/")
    question = posts.pop((_QUESTION, number), None)
    posts = {at: answer for at, answer in posts.items() if answer[3] is not None}
    if question is None or question[3] is None:
      if posts:
        counts.drop("answer_without_question" if question is None else "answer_of_dropped_question", n=len(posts),
                    text=next(iter(posts.values()))[3])
      return
    _, _, _, title, body, accepted = question
    if "title_body" in self.pairs and self._fits(body, "body", counts, title=title):
      yield Example(title, body, key, key, group=key)
    if "question_answer" in self.pairs:
      answer = posts.get((_ANSWER, accepted))
      if answer is None:
        enough = [a for a in posts.values() if a[4] >= self.min_answer_score]
        answer = min(enough, key=lambda a: (-a[4], len(a[1]), a[1]), default=None)
      if answer is None:
        counts.drop("question_without_answer", title=title, text=body)
      else:
        yield Example(f"{title}\n{body}".strip(), answer[3], key, f"{site}/{answer[1]}", group=key)


def _date(post):
  """When a copy was last seen to change; ISO 8601, so that it compares as text."""
  return max(post.get("LastActivityDate", ""), post.get("LastEditDate", ""))


def _attributes(row: bytes) -> dict[str, str]:
  """Of one element, as XML means them. 80 MB/s; taking them out by a regular expression is a third faster at best."""
  try:
    return _parsed(row)
  except expat.ExpatError:
    allowed = _FORBIDDEN.sub(b"", row)
    if allowed == row:
      raise
    return _parsed(allowed)


def _parsed(row):
  found = {}
  parser = expat.ParserCreate("utf-8")
  parser.StartElementHandler = lambda name, attributes: found.update(attributes)
  parser.Parse(row, True)
  return found


def _rows(part: Part) -> Generator[tuple[str, bytes]]:
  """(place, line) of those that hold a post. Raises InputError where the file ends without `</posts>`."""
  last, archived = b"", part.path.endswith(".7z")
  for place, line, *_ in seven_zip.read_lines(part.path, "Posts.xml") if archived else lines.read_lines(part):
    line = line.strip()
    last = line or last
    if line and not line.startswith((b"<?xml", b"<posts", b"</posts")):
      yield place, line
    else:
      lines.progress.lines -= 1  # Only rows count as read.
  if part.stop is None and last and not last.endswith(b"</posts>"):
    raise _cut_off(part.path)


def _cut_off(path):
  return InputError(f"{path}: ends without </posts>: cut off; fetch it again")


def _files(paths: tuple[str, ...]) -> list[str]:
  """Folders become the dumps in them."""
  if not paths:
    raise InputError("no dump is named; give a Posts.xml, a site's .7z or a folder of them")
  files = []
  for path in map(epath.Path, paths):
    if not path.exists() or not path.is_dir():
      lines.size_of(os.fspath(path))  # Raises where there is none.
      files.append(os.fspath(path))
      continue
    found = sorted({os.fspath(f) for pattern in ("Posts.xml*", "*/Posts.xml*", "*.7z") for f in path.glob(pattern)
                    if not _TABLES.search(f.name)})
    if not found:
      raise InputError(f"{path}: no Posts.xml and no .7z in it or in its folders; fetch a site's dump from "
                       "https://archive.org/details/stackexchange")
    files += found
  return files


def _site(path: str) -> str:
  """beer.stackexchange.com of .../beer.stackexchange.com.7z and of .../beer.stackexchange.com/Posts.xml."""
  file = epath.Path(os.path.abspath(path) if "://" not in path else path)
  name = re.sub(r"(\.7z|\.xml(\.\w+)?)$", "", file.name)
  return file.parent.name if name == "Posts" else re.sub(r"[-_.]Posts$", "", name)


def _check(part: Part) -> None:
  """Raises InputError unless the file begins as Posts.xml does, and, if it is plain, ends so."""
  with contextlib.closing(_rows(part)) as rows:
    _, row = next(rows, ("", b""))
  try:
    names = _attributes(row)
  except expat.ExpatError:
    names = {}
  if not {"Id", "PostTypeId", "Body"} <= names.keys():
    what = f"its rows have {', '.join(names)}" if names else f"it begins with {row[:60].decode(errors='replace')!r}"
    raise InputError(f"{part.path}: not the Posts.xml of a Stack Exchange dump, {what}; expected <row Id= PostTypeId= "
                     "Body= ... /> in every line")
  if not lines.is_compressed(part.path):  # Or else its end is seen when it is read.
    with epath.Path(part.path).open("rb") as f:
      f.seek(max(0, lines.size_of(part.path) - 1024))
      if b"</posts>" not in f.read():
        raise _cut_off(part.path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare stack_exchange`."""
  parser.epilog = """\
examples:
  gtr-jax prepare stack_exchange dumps/ --closed
  gtr-jax prepare stack_exchange stackoverflow.com/Posts.xml --pairs question_answer --min_answer_score 3

HTML becomes text with code kept as it is. What is dropped, and why, is counted in the manifest."""
  default = StackExchange(("",))
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="DUMP",
                      help="Posts.xml of a site (plain, .gz, .bz2, .xz or .zst), its .7z, or a folder of these; a "
                      "plain file is read on all cores. The archive or the folder names the site: two of one name are "
                      "taken for dumps of one site. From https://archive.org/details/stackexchange")
  parser.add_argument("--pairs", default=",".join(PAIRS), metavar="KIND,...",
                      help="title_body: title -> text of the question; question_answer: title and text -> accepted or "
                      "best answer (default: %(default)s)")
  parser.add_argument("--min_question_score", type=flags.whole, default=default.min_question_score, metavar="N",
                      help="drop questions below, with their answers (default: %(default)s)")
  parser.add_argument("--min_answer_score", type=flags.whole, default=default.min_answer_score, metavar="N",
                      help="drop answers below; an accepted one is kept from 0 up (default: %(default)s)")
  parser.add_argument("--min_words", type=flags.non_negative, default=default.min_words, metavar="N",
                      help="drop shorter texts of questions, and answers (default: %(default)s)")
  parser.add_argument("--max_characters", type=flags.positive, default=default.max_characters, metavar="N",
                      help="drop longer ones; 512 tokens are about 2,500 (default: %(default)s)")
  parser.add_argument("--closed", action="store_true", help="keep closed questions: duplicates, off topic, unclear")


def source(args: argparse.Namespace) -> StackExchange:
  """The source that the flags describe. Raises InputError where they are wrong."""
  return StackExchange(tuple(args.paths), tuple(k for k in args.pairs.split(",") if k), args.min_question_score,
                       args.min_answer_score, args.min_words, args.max_characters, args.closed)
