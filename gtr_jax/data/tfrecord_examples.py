"""Examples of TFRecord files of tf.train.Example, by the fields that a task declares. TensorFlow is not imported."""

import functools
from collections.abc import Generator
from typing import Any

from etils import epath
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from gtr_jax.data.json_examples import Fields, example_of
from gtr_jax.errors import InputError
from gtr_jax.io import jsonl
from gtr_jax.io.lines import Part, progress
from gtr_jax.prepare.interface import Example
from gtr_jax.prepare.records import read_records

_KINDS = {"bytes_list": "TYPE_BYTES", "float_list": "TYPE_FLOAT", "int64_list": "TYPE_INT64"}


def read_examples(part: Part, fields: Fields) -> Generator[tuple[str, Example], None, list[str]]:
  """(place, example) of a file, whole.

  Returns:
    Those of the declared id fields that no record has.

  Raises:
    InputError: the file is damaged, or a record lacks a field, or has an empty query or passage; names file and record.
  """
  without = {name for name in (fields.query_id, fields.passage_id) if name is not None}
  with epath.Path(part.path).open("rb") as file:
    hint = "if it is a TFRecord file at all, fetch or write it again"
    for number, record in enumerate(read_records(file, part.path, hint), start=1):
      progress.on_bytes(len(record) + 16)
      place = f"{part.path}:{number}"
      try:
        row = _row(record)
        yield place, example_of(row, fields)
      except ValueError as e:
        raise InputError(f"{place}: {e}; correct or remove the record") from e
      without -= row.keys()
  return sorted(without)


def _row(record: bytes) -> dict[str, Any]:
  """As JSON has it: of a feature its value, or a list where it has several, or none. Raises ValueError."""
  try:
    features = _example_class().FromString(record).features.feature
  except Exception as e:  # Whatever protobuf calls it.
    raise ValueError("not a tf.train.Example") from e
  row = {}
  for name, feature in features.items():
    kind = feature.WhichOneof("kind")
    row[name] = field(list(getattr(feature, kind).value) if kind else [])
  return row


def field(values: list[Any]) -> Any:
  """Of the values of a feature what JSON would hold: of one itself, of none or several a list.

  Raises ValueError where bytes are no text.
  """
  found = [jsonl.plain(value) for value in values]
  return found[0] if len(found) == 1 else found


@functools.cache
def _example_class() -> Any:
  """tf.train.Example (tensorflow/core/example/example.proto), in a pool of its own."""
  file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="of_records", syntax="proto3")
  kind = descriptor_pb2.FieldDescriptorProto
  feature = file.message_type.add(name="Feature")
  feature.oneof_decl.add(name="kind")
  for number, (name, value_type) in enumerate(_KINDS.items(), start=1):
    file.message_type.add(name=name).field.add(name="value", number=1, label=kind.LABEL_REPEATED,
                                               type=kind.Type.Value(value_type))
    feature.field.add(name=name, number=number, label=kind.LABEL_OPTIONAL, type=kind.TYPE_MESSAGE,
                      type_name=f".of_records.{name}", oneof_index=0)
  features = file.message_type.add(name="Features")
  entry = features.nested_type.add(name="FeatureEntry")
  entry.options.map_entry = True
  entry.field.add(name="key", number=1, label=kind.LABEL_OPTIONAL, type=kind.TYPE_STRING)
  entry.field.add(name="value", number=2, label=kind.LABEL_OPTIONAL, type=kind.TYPE_MESSAGE,
                  type_name=".of_records.Feature")
  features.field.add(name="feature", number=1, label=kind.LABEL_REPEATED, type=kind.TYPE_MESSAGE,
                     type_name=".of_records.Features.FeatureEntry")
  file.message_type.add(name="Example").field.add(name="features", number=1, label=kind.LABEL_OPTIONAL,
                                                  type=kind.TYPE_MESSAGE, type_name=".of_records.Features")
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClass(pool.FindMessageTypeByName("of_records.Example"))
