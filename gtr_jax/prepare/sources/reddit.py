"""Pairs from dumps of Reddit: files of posts (`RS_*`) and of comments (`RC_*`), one JSON object a line.

Fields: the schemas of github.com/ArthurHeitmann/arctic_shift (schemas/RS.ts, schemas/RC.ts), for Pushshift's and later
dumps alike; threads are joined as in reddit/create_data.py of github.com/PolyAI-LDN/conversational-datasets.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from gtr_jax.errors import InputError
from gtr_jax.io import flags, jsonl, lines
from gtr_jax.io.lines import Part
from gtr_jax.prepare.interface import Counts, Example, newest, what_is_wrong
from gtr_jax.prepare.sources import reddit_text
from gtr_jax.values.check import check_fields
from gtr_jax.values.ranges import NonNegative, Positive

PAIRS = ("title_body", "post_comment", "comment_reply")
_POST, _COMMENT = "post", "comment"
_WHOLE_THREAD = ("over_18", "quarantined")  # Comments on such a post are dropped with it.


@dataclasses.dataclass(frozen=True)
class Reddit:
  """Posts, comments and replies. What is in several dumps counts as in the one retrieved last.

  Dropped in any case: what was deleted or removed, bots (`reddit_text.by_bot`), answers of authors to themselves.
  Ids are Reddit's own, `t3_` of a post and `t1_` of a comment, so that pairs of one post know of each other.

  Attributes:
    paths: dumps, plain (read on all cores) or .zst, .bz2, .xz, .gz.
    pairs: what to make: `title_body` (title -> text of a post), `post_comment` (title and text -> the comment on it
      with the highest score) and `comment_reply` (comment -> the reply to it with the highest score). The older of
      equal scores is taken.
    min_post_score: posts below are dropped.
    min_comment_score: comments below are dropped. The author's own vote is 1; a score that is not known counts as 1.
    min_title_words: posts with shorter titles are dropped.
    min_words: shorter texts of posts, and comments, are dropped.
    max_words: longer ones too.
    min_characters: as `min_words`, in characters.
    max_characters: as `max_words`, in characters; 512 tokens are about 2,500.
    over_18: keep posts for adults, posts in communities that are, and comments on them (where the post is known).
    quarantined: keep what is in quarantined communities.
    official: keep what is pinned, is an advertisement, or is said in the office of a moderator or administrator.
    bots: more authors to drop.
    without_subreddits: communities to drop.
  """

  name: ClassVar[str] = "reddit"
  licence: ClassVar[str] = ""
  listed: ClassVar[tuple[str, ...]] = ("paths",)
  paths: tuple[str, ...]
  pairs: tuple[str, ...] = PAIRS
  min_post_score: int = 1
  min_comment_score: int = 1
  min_title_words: NonNegative = 3
  min_words: NonNegative = 5
  max_words: Positive = 2_000
  min_characters: NonNegative = 20
  max_characters: Positive = 10_000
  over_18: bool = False
  quarantined: bool = False
  official: bool = False
  bots: tuple[str, ...] = ()
  without_subreddits: tuple[str, ...] = ()

  def __post_init__(self):
    check_fields(self)
    if not self.pairs or not set(self.pairs) <= set(PAIRS):
      raise InputError(f"pairs {', '.join(self.pairs) or 'none'}: choose of {', '.join(PAIRS)}")

  def parts(self) -> list[Part]:
    """Byte ranges of plain files, archives whole. Raises InputError where a file is of another kind, or one lacks."""
    if not self.paths:
      raise InputError("no dump is named; give files of posts (RS_*.zst) and of comments (RC_*.zst)")
    parts, kinds = [], set()
    for path in self.paths:
      file_parts = lines.line_parts([path])
      kind = _kind_of(file_parts[0]._replace(stop=None))
      kinds.add(kind)
      parts += [part._replace(kind=kind) for part in file_parts]
    for pair, needed in {"title_body": [_POST], "post_comment": [_POST, _COMMENT], "comment_reply": [_COMMENT]}.items():
      for kind in needed:
        if pair in self.pairs and kind not in kinds:
          raise InputError(f"{pair} needs {kind}s, and {', '.join(self.paths)} has none; give "
                           f"{'RS_*' if kind == _POST else 'RC_*'} as well, or --pairs without {pair}")
    return parts

  def read(self, part: Part, counts: Counts) -> Iterator[tuple[str, Any]]:
    """Yields (id of the post, [kind, id, time, ...]) of posts and of comments, so that a thread meets in `join`."""
    for place, row in jsonl.read_values(part, counts.broken):
      try:
        if not isinstance(row["id"], str):
          raise ValueError(f"id {row['id']!r}")
        if "title" in row and "link_id" not in row:
          yield row["id"], self._post(row, place, counts)
        else:
          yield row["link_id"].removeprefix("t3_"), self._comment(row, place, counts)
      except KeyError as e:
        counts.broken(place, f"no field {e.args[0]!r}, only {', '.join(row)[:200]}")
      except (TypeError, ValueError, AttributeError, OverflowError) as e:
        counts.broken(place, f"not a post or comment: {what_is_wrong(e)}")

  @functools.cached_property
  def _bots(self):
    return frozenset(reddit_text.BOTS) | {name.lower() for name in self.bots}

  @functools.cached_property
  def _without_subreddits(self):
    return {name.lower().removeprefix("r/") for name in self.without_subreddits}

  def _reason(self, row, text, score_needed):
    """Why a post or comment is dropped, if it is."""
    author, subreddit = row.get("author") or "", row.get("subreddit") or ""
    meta = row.get("_meta") or {}
    if not self.over_18 and (row.get("over_18") or (row.get("sr_detail") or {}).get("over_18")):
      return "over_18"
    if not self.quarantined and (row.get("quarantine") or row.get("quarantined")):
      return "quarantined"
    if (reddit_text.taken_away(text) or row.get("removed_by_category") or row.get("removed") or row.get("spam")
        or meta.get("was_deleted_later") or meta.get("removal_type")):
      return "deleted"
    if reddit_text.by_bot(author, self._bots, text):
      return "bot"
    if not self.official and (row.get("stickied") or row.get("distinguished") or row.get("promoted")):
      return "official"
    if subreddit.lower() in self._without_subreddits:
      return "subreddit"
    return "score" if _score(row) < score_needed else None

  def _post(self, row, place, counts):
    title, body = reddit_text.plain_title(row["title"]), (row.get("selftext") or "").strip()
    counts.add("posts")
    reason = "deleted" if reddit_text.taken_away(title) else self._reason(row, body, self.min_post_score)
    if not reason and len(title.split(None, self.min_title_words)) < self.min_title_words:
      reason = "title_too_short"
    if reason:  # Copies in other dumps must learn of it, and so must comments.
      counts.drop(f"post_{reason}", place, title=title, text=body)
      return [_POST, row["id"], _time(row), None, reason, ""]
    return [_POST, row["id"], _time(row), title, reddit_text.plain_text(body, quotes=True), row.get("author") or ""]

  def _comment(self, row, place, counts):
    text, parent = row["body"].strip(), row["parent_id"]
    if not row["link_id"].startswith("t3_") or not parent.startswith(("t1_", "t3_")):
      raise ValueError(f"parent_id {parent!r}, link_id {row['link_id']!r}")
    counts.add("comments")
    reason = self._reason(row, text, self.min_comment_score)
    if reason:
      counts.drop(f"comment_{reason}", place, text=text)
    else:
      text = reddit_text.plain_text(text, quotes=False)
    if reason or not self._fits(text, "comment", counts, place):  # Copies in other dumps must learn of it.
      return [_COMMENT, row["id"], _time(row), None]
    created = int(float(row.get("created_utc") or 0))
    return [_COMMENT, row["id"], _time(row), text, row.get("author") or "", parent, _score(row), created]

  def _fits(self, text, what, counts, place="", **texts):
    words = len(text.split())
    if words < self.min_words or len(text) < self.min_characters:
      counts.drop(f"{what}_too_short" if text else f"{what}_empty", place, **texts, text=text)
    elif words > self.max_words or len(text) > self.max_characters:
      counts.drop(f"{what}_too_long", place, **texts, text=text)
    else:
      return True
    return False

  def join(self, key: str, values: list[Any], counts: Counts) -> Iterator[Example]:
    """The pairs of one thread."""
    things = newest(values, counts)
    post = things.pop((_POST, key), None)
    things = {at: comment for at, comment in things.items() if comment[3] is not None}
    if post is not None and post[3] is None:
      if post[4] in _WHOLE_THREAD:
        if things:
          counts.drop(f"comment_on_{post[4]}", n=len(things), text=next(iter(things.values()))[3])
        return
      post = None
    elif post is None and things and "post_comment" in self.pairs:
      counts.add("thread_without_post")
    replies = collections.defaultdict(list)
    for comment in things.values():
      replies[comment[5]].append(comment)
    if post is not None:
      yield from self._pairs_of_post(post, replies.get(f"t3_{key}", ()), counts)
    if "comment_reply" in self.pairs:
      for parent, of in replies.items():
        if parent.startswith("t1_") and (_COMMENT, parent[3:]) not in things:
          counts.drop("reply_without_comment", n=len(of), text=of[0][3])
      for _, comment, _, text, author, *_ in things.values():
        if reply := _best(replies.get(f"t1_{comment}", ()), author):
          yield Example(text, reply[3], f"t1_{comment}", f"t1_{reply[1]}", group=key)

  def _pairs_of_post(self, post, comments, counts):
    _, number, _, title, body, author = post
    if "title_body" in self.pairs and self._fits(body, "body", counts, title=title):
      yield Example(title, body, f"t3_{number}", f"t3_{number}", group=number)
    if "post_comment" in self.pairs:
      if comment := _best(comments, author):
        yield Example(f"{title}\n{body}".strip(), comment[3], f"t3_{number}", f"t1_{comment[1]}", group=number)
      else:
        counts.drop("post_without_comment", title=title, text=body)


def _best(comments: Iterable[list], asker: str) -> list | None:
  """The one with the highest score, the oldest of equals; none by the author of what it answers."""
  others = [c for c in comments if c[4] != asker or c[4] in ("", "[deleted]")]
  return min(others, key=lambda c: (-c[6], c[7], len(c[1]), c[1]), default=None)


def _score(row):
  return 1 if row.get("score") is None else int(row["score"])


def _time(row):
  """When a copy was retrieved; 0 where the dump does not say."""
  times = [row.get("retrieved_on"), row.get("retrieved_utc"), (row.get("_meta") or {}).get("retrieved_2nd_on")]
  return max(int(t or 0) for t in times)


def _kind_of(part: Part) -> str:
  """Of a file, by its first object. Raises InputError where that is neither a post nor a comment."""
  with contextlib.closing(jsonl.read_values(part, Counts().broken)) as rows:
    _, row = next(rows, ("", None))
  if isinstance(row, dict):
    if "title" in row and "link_id" not in row and "id" in row:
      return _POST
    if {"body", "link_id", "parent_id", "id"} <= row.keys():
      return _COMMENT
  what = f"its first object has {', '.join(map(str, row))[:200]}" if isinstance(row, dict) else "it has no JSON object"
  hint = "; for pairs of title and body use the source pairs" if isinstance(row, dict) and "title" in row else ""
  raise InputError(f"{part.path}: not a dump of Reddit, {what}; expected posts (id, title, selftext) or comments (id, "
                   f"body, link_id, parent_id){hint}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags of `gtr-jax prepare reddit`."""
  parser.epilog = """\
examples:
  gtr-jax prepare reddit RS_2019-*.zst RC_2019-*.zst
  gtr-jax prepare reddit RS_2019-01.zst --pairs title_body --min_post_score 3 --name reddit_titles

What is dropped, and why, is counted in the manifest. Ids are kept: pairs of one post are not each other's negatives.
The dumps: https://github.com/ArthurHeitmann/arctic_shift (download_links.md)."""
  parser.add_argument("paths", nargs="+", type=flags.path, metavar="DUMP",
                      help="files of posts (RS_2019-01.zst, ..._submissions.zst) and of comments (RC_2019-01.zst, "
                      "..._comments.zst), one JSON object a line; give the months after a post too, for comments on it")
  parser.add_argument("--pairs", default=",".join(PAIRS), metavar="KIND,...",
                      help="title_body: title -> text of a post; post_comment: title and text -> best comment; "
                      "comment_reply: comment -> best reply (default: %(default)s)")
  defaults = {f.name: f.default for f in dataclasses.fields(Reddit)}
  for name, what in (
      ("min_post_score", "drop posts with a lower score"), ("min_comment_score", "drop comments with a lower score"),
      ("min_title_words", "drop posts with shorter titles"), ("min_words", "drop shorter texts and comments"),
      ("max_words", "drop longer texts and comments"), ("min_characters", "as --min_words, in characters"),
      ("max_characters", "as --max_words, in characters; 512 tokens are about 2,500")):
    kind = flags.whole if name.endswith("_score") else flags.positive if "max" in name else flags.non_negative
    parser.add_argument(f"--{name}", type=kind, default=defaults[name], metavar="N",
                        help=f"{what} (default: %(default)s)")
  for name, what in (
      ("over_18", "keep posts for adults and comments on them"), ("quarantined", "keep quarantined communities"),
      ("official", "keep pinned posts, advertisements and what moderators say as such")):
    parser.add_argument(f"--{name}", action="store_true", help=what)
  parser.add_argument("--bots", type=flags.path, metavar="FILE",
                      help="more authors to drop, one a line; AutoModerator, names that end in bot and texts that say "
                      "so are dropped anyway")
  parser.add_argument("--without_subreddits", type=flags.path, metavar="FILE",
                      help="communities to drop, one a line")


def source(args: argparse.Namespace) -> Reddit:
  """The source that the flags describe. Raises InputError where they are wrong."""
  given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Reddit)}
  given |= {"paths": tuple(args.paths), "pairs": tuple(k for k in args.pairs.split(",") if k),
            "bots": _names(args.bots), "without_subreddits": _names(args.without_subreddits)}
  return Reddit(**given)


def _names(path: str | None) -> tuple[str, ...]:
  """The lines of a file."""
  if path is None:
    return ()
  return tuple(sorted({line.strip() for part in lines.line_parts([path]) for _, line in lines.read_text(part)
                       if line.strip()}))
