"""The Markdown of Reddit's posts and comments to plain text, and simple tests of who wrote what."""

import html
import re

# What stands in the place of a text that its author ("deleted") or a moderator ("removed") has taken away.
_TAKEN_AWAY = re.compile(r"\[\s*(?:deleted|removed)\b[^\]]*\]", re.IGNORECASE)
# Not robots, nor people who put a year or more behind it.
_BOT_NAME = re.compile(r"(?<!ro)(?<!nano)bot[-_]*\d{0,2}[-_]*$", re.IGNORECASE)
_BOT_SAYS = re.compile(r"\b(?:I am|I'm|I'm just|this is) an? (?:\w+ )?bot\b|\bbeep,? boop\b|performed automatically",
                       re.IGNORECASE)
# Well-known ones whose names do not end in "bot"; the longest public list is scripts/ignored.txt of
# github.com/Watchful1/PushshiftDumps.
BOTS = ("automoderator", "autotldr", "totesmessenger", "imguralbumbot", "video_descriptionbot", "encouragementrobot",
        "the_timezone_bot_", "waitingtobetriggered", "thesunflowerseeds", "mentioned_videos", "metric_units",
        "convertstometric", "urlfixerbotsnr", "profanitycounter", "amp-is-watching-you", "agree-with-you")

_UNSEEN = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\u200b-\u200f\u2060\ufeff\ud800-\udfff]")  # The last: half characters.
_IMAGE = re.compile(r"!\[[^\[\]]*\]\([^()\s]*\)")
_LINK = re.compile(r"\[((?:[^\[\]]++|\[[^\[\]]*+\])*+)\]\(\s*(?:[^()\s]|\((?:[^()\s]|\([^()\s]*\))*\))*"
                   r"(?:\s+\"[^\"]*\")?\s*\)")
_URL = re.compile(r"<?\b(?:https?://|www\.)[^\s()<>\[\]]+(?:\([^\s()]*\)[^\s()<>\[\]]*)*>?")
_URL_IN_BRACKETS = re.compile(rf"\(\s*{_URL.pattern}\s*\)")
_STRONG = re.compile(r"(?<!\\)(\*{1,3}|(?<!\w)_{1,3}|~~)(?=\S)((?:[^*_~\n]|\n(?=[^*\s]))+?)(?<=[^\s\\])\1(?!\w)")
_SPOILER = re.compile(r">!([^>]*?)!<")
_RAISED = re.compile(r"\^\(([^()]*)\)|(?<!\w)\^+(?=\w)")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+.!>~^|-])")
_RULE = re.compile(r"[\s*_=:|`~+-]*")  # A line of nothing else: a rule, a fence of code, the line under a table's head.
_HEADING = re.compile(r"#{1,6}\s*(?=\S)")
_BULLET = re.compile(r"[*+-]\s+")


def taken_away(text: str) -> bool:
  """Whether "[deleted]", "[removed]" or the like stands in the place of a text."""
  return text.startswith("[") and _TAKEN_AWAY.fullmatch(text) is not None


def by_bot(author: str, bots: frozenset[str], text: str) -> bool:
  """Whether the author is among `bots` (lower case), is called ...bot, or the text says so."""
  return author.lower() in bots or _BOT_NAME.search(author) is not None or _BOT_SAYS.search(text) is not None


def plain_title(text: str) -> str:
  """A title: entities resolved, one line."""
  return " ".join(_seen(text).split())


def plain_text(markdown: str, *, quotes: bool) -> str:
  """What a reader sees of a text, one line for a paragraph or item, without addresses and images.

  Args:
    markdown: as in the dumps, with &, < and > as entities.
    quotes: keep quoted lines. In a comment they repeat what it answers to, and would give it away.
  """
  text = _seen(markdown)
  if "](" in text:
    text = _LINK.sub(r"\1", _IMAGE.sub("", text))
  if "http" in text or "www." in text:
    text = _URL.sub("", _URL_IN_BRACKETS.sub("", text))
  if ">!" in text:
    text = _SPOILER.sub(r"\1", text)
  if "^" in text:
    text = _RAISED.sub(r"\1", text)
  if "*" in text or "_" in text or "~" in text:
    text = _STRONG.sub(r"\2", _STRONG.sub(r"\2", text))  # Twice: one may lie in another.
  lines = []
  for line in text.splitlines():
    line = line.strip()
    if line.startswith(">"):
      line = line.lstrip("> ") if quotes else ""
    if not line or _RULE.fullmatch(line):
      continue
    if line[0] == "#":
      line = _HEADING.sub("", line, count=1)
    elif line[0] in "*+-":
      line = _BULLET.sub("- ", line, count=1)
    if "`" in line:
      line = line.replace("`", "")
    if "\\" in line:
      line = _ESCAPED.sub(r"\1", line)
    if line := " ".join(line.split()):
      lines.append(line)
  return "\n".join(lines)


def _seen(text):
  """Entities resolved, those of the API and those that the author wrote; without what has no shape."""
  if "&" in text:
    text = html.unescape(html.unescape(text))
  return text if text.isascii() and text.isprintable() else _UNSEEN.sub("", text)
