"""Made-up text and files of pairs for the tests of the data pipeline."""

import json
import random
import struct
from pathlib import Path

import tensorflow as tf

_SYLLABLES = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]


def words(number, seed):
  """A text of `number` made-up words."""
  rng = random.Random(seed)
  return " ".join("".join(rng.choices(_SYLLABLES, k=rng.randint(1, 3))) for _ in range(number))


def pairs(number, start=0):
  """Rows of a JSONL file of pairs, all texts different."""
  return [{"query": f"q{i} " + words(4, f"q{i}"), "passage": f"p{i} " + words(12, f"p{i}")}
          for i in range(start, start + number)]


def write_jsonl(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


def records(path):
  """(example id, first byte, byte after the last) of every record of a TFRecord file, read by its definition."""
  data, at, found = Path(path).read_bytes(), 0, []
  while at < len(data):
    length, = struct.unpack("<Q", data[at:at + 8])
    example = tf.train.Example.FromString(data[at + 12:at + 12 + length])
    end = at + 12 + length + 4
    found.append((example.features.feature["example_id"].bytes_list.value[0].decode(), at, end))
    at = end
  return found


_number = iter(range(10**6))


def task_name():
  """A name that no other test has registered."""
  return f"task_{next(_number)}"
