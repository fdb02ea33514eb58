"""What is written: pairs as tf.train.Example in TFRecord files, ordered and told apart by the hash of their text.

TensorFlow is not imported, for it would cost every worker 760 MB and 4 seconds. The encodings are those of protocol
buffers and of TensorFlow's record_writer.h; tests/prepare/test_prepare_engine.py reads them with TensorFlow.
"""

import hashlib
import os
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

import google_crc32c
from etils import epath

from gtr_jax.errors import InputError
from gtr_jax.prepare.interface import Example
from gtr_jax.text.same_text import text_key

NEGATIVE = "negative"  # The split of a pair that is none: its passage is a negative of the query's pairs.
ANSWER = "answer"  # Of one that is not trained on, though its passage answers the query. The record is `known_of` that.
DRAWN = "drawn"  # Of one that is held out by the hash of its query's words, unless a query id says otherwise (`SIDE`).
SIDE = "side"  # Of none: the record is the split that an id of the query is drawn for.
_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


class Pair(NamedTuple):
  """An example on its way to the shards; or, with no split, a mark that examples of this hash are not wanted."""

  digest: bytes  # 16 bytes: 8 that pairs of a query share, 8 in whose order they are put, which is a random one.
  split: str  # Or NEGATIVE.
  record: bytes  # tf.train.Example; of a mark: the reason and, behind a space, `key_of` the passage, UTF-8.

  @property
  def is_trained_on(self) -> bool:
    """Whether it is no mark, no `NEGATIVE`, no `ANSWER` and no `SIDE`."""
    return self.split not in ("", NEGATIVE, ANSWER, SIDE)


def known_of(passage: str, passage_id: str) -> bytes:
  """By what a passage is known to answer a query: `key_of` it and, behind a space, its id, if it has one."""
  return f"{key_of(passage)} {passage_id}".encode(errors="surrogatepass")


def digest_of(query: bytes, passage: bytes) -> bytes:
  """16 bytes for a pair, folded; the first 8 are those of its query."""
  return query_digest(query) + hashlib.blake2b(b"%d %b %b" % (len(query), query, passage), digest_size=8).digest()


def query_digest(query: bytes) -> bytes:
  """8 bytes for a query, folded."""
  return hashlib.blake2b(query, digest_size=8, person=b"query").digest()


def share_of(text: bytes) -> float:
  """A number in [0, 1) for a folded text, unlike that of any other."""
  return int.from_bytes(hashlib.blake2b(text, digest_size=8, person=b"split").digest()[:7]) / 2**56


def serialize(example: Example, example_id: str) -> bytes:
  """tf.train.Example with the features of `shards.TEXTS` and `shards.LISTS`, and a teacher's `vectors` where there are
  some.

  Raises UnicodeEncodeError where a text has half a surrogate pair, as JSON allows.
  """
  return _field(b"\x0a", b"".join((
      _feature(b"example_id", (example_id,)), _feature(b"negative_ids", example.negative_ids),
      _feature(b"negative_keys", tuple(map(key_of, example.negatives))),
      _feature(b"negative_queries", example.negative_queries), _feature(b"negatives", example.negatives),
      _feature(b"passage", (example.passage,)), _feature(b"passage_id", (example.passage_id,)),
      _feature(b"passage_key", (key_of(example.passage),)), _feature(b"positives", example.positives),
      _feature(b"query", (example.query,)), _feature(b"query_id", (example.query_id,)),
      _feature(b"query_key", (key_of(example.query),)), _feature(b"scores", tuple(map(repr, example.scores))),
      _feature(b"vectors", example.vectors) if example.vectors else b"")))


def key_of(text: str) -> str:
  """The `text_key` of a text as the int64 that a batch holds, in decimal."""
  return str((text_key(text) + 2**63) % 2**64 - 2**63)


def _feature(name: bytes, texts: tuple[str, ...]) -> bytes:
  """An entry of the map Features.feature: {1: name, 2: Feature{1: BytesList{1: repeated bytes}}}."""
  values = b"".join([_field(b"\x0a", text.encode()) for text in texts])
  return _field(b"\x0a", _field(b"\x0a", name) + _field(b"\x12", _field(b"\x0a", values)))


def _field(tag: bytes, value: bytes) -> bytes:
  n = len(value)
  if n < 128:
    return tag + bytes((n,)) + value
  size = bytearray()
  while n > 127:
    size.append(n & 127 | 128)
    n >>= 7
  size.append(n)
  return tag + size + value


def texts_of(record: bytes) -> dict[str, list[str]]:
  """Reads what `serialize` has written."""
  (_, features), = _fields(record)
  found = {}
  for _, entry in _fields(features):
    (_, name), (_, feature) = _fields(entry)
    (_, values), = _fields(feature)
    found[name.decode()] = [text.decode() for _, text in _fields(values)]
  return found


def example_in(record: bytes) -> Example:
  """The example that `serialize` has written, without its split and group."""
  texts = texts_of(record)
  return Example(
      query=texts["query"][0], passage=texts["passage"][0], query_id=texts["query_id"][0],
      passage_id=texts["passage_id"][0], negatives=tuple(texts["negatives"]),
      negative_ids=tuple(texts["negative_ids"]), negative_queries=tuple(texts["negative_queries"]),
      scores=tuple(map(float, texts["scores"])), positives=tuple(texts["positives"]),
      vectors=tuple(texts.get("vectors", ())))


def id_in(record: bytes) -> str:
  """The example id; quicker than `texts_of`."""
  (_, features), = _fields(record)
  _, entry = next(_fields(features))
  _, (_, feature) = _fields(entry)
  (_, values), = _fields(feature)
  (_, text), = _fields(values)
  return text.decode()


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
  at = 0
  while at < len(message):
    tag, at, size, shift = message[at], at + 1, 0, 0
    while True:
      byte, at = message[at], at + 1
      size |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        break
    yield tag, message[at:at + size]
    at += size


def write_record(file: IO[bytes], record: bytes) -> None:
  """Appends to a TFRecord file: length, its checksum, the record, its checksum."""
  length = _LENGTH.pack(len(record))
  file.write(b"".join((length, _checksum(length), record, _checksum(record))))


def _checksum(data: bytes) -> bytes:
  """The masked CRC of TFRecord."""
  crc = google_crc32c.value(data)
  return _CHECKSUM.pack(((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def read_records(file: IO[bytes], path: str, hint: str = "") -> Iterator[bytes]:
  """The records of a TFRecord file. Raises InputError where it is cut off or damaged, which ends with the hint, or says
  how prepared data are made again."""
  while header := file.read(12):
    try:
      record, _ = record_at(header + file.read(_size_in(header) + 4), 0)
    except ValueError:
      hint = hint or f"remove the folder {os.path.dirname(path)}, and give the command again that made it"
      raise InputError(f"{path}: a record is damaged or cut off; {hint}") from None
    yield record


def records_in(path: epath.Path) -> Iterator[bytes]:
  """As `read_records`, of the file there."""
  with path.open("rb") as file:
    yield from read_records(file, os.fspath(path))


def record_at(data: bytes, at: int) -> tuple[bytes, int]:
  """A record of a TFRecord file, and where the next one begins. Raises ValueError where it is cut off or damaged."""
  if len(data) < at + 16:
    raise ValueError("cut off")
  size, = _LENGTH.unpack_from(data, at)  # If it is damaged, so will be what it takes for the record.
  record, end = data[at + 12:at + 12 + size], at + 16 + size
  if data[end - 4:end] != _checksum(record):
    raise ValueError("damaged, or cut off")
  return record, end


def _size_in(header: bytes) -> int:
  if len(header) < 12 or header[8:] != _checksum(header[:8]):
    raise ValueError("damaged, or cut off")
  return _LENGTH.unpack(header[:8])[0]
