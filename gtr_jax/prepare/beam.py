"""Prepares a source as an Apache Beam pipeline: the same steps, the same shards, on a cluster.

Input and output are files that every worker of the runner can reach (`gs://…`), and gtr_jax is installed on all.
"""

import collections
import functools
import itertools
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from etils import epath

from gtr_jax.errors import InputError, first_line
from gtr_jax.io import atomic, data_root, failures
from gtr_jax.io.json_file import read_json
from gtr_jax.prepare import buckets, engine, manifests, near_pairs, records, transforms, work_folder
from gtr_jax.prepare.interface import KEPT_PLACES, Source
from gtr_jax.prepare.records import Pair

try:
  import apache_beam as beam
  from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as e:
  raise InputError("--runner needs Apache Beam: pip install 'gtr_jax[beam]'") from e

_RUNNERS = {"direct": "DirectRunner", "dataflow": "DataflowRunner", "flink": "FlinkRunner", "spark": "SparkRunner"}


def prepare(source: Source, settings: manifests.Settings, runner: str, options: Sequence[str] = (), *,
            max_broken: float = 0.001, say: Callable[[str], None] = print) -> epath.Path:
  """As `engine.prepare`, with the same bytes; nothing is kept to go on from.

  Args:
    source: what to prepare.
    settings: what decides the result beside the source.
    runner: "direct", "dataflow" or another of Beam's, by its name there.
    options: Beam's own, such as "--region=europe-west4".
    max_broken: the share of lines that may be broken; fewer than 10 always may.
    say: gets the lines for the user.
  """
  final = data_root.data_dir() / (settings.name or source.name)
  description = manifests.describe(source, settings)
  if manifests.is_there(final, description, max_broken):
    say(f"{final} is up to date")
    return final
  new = final.parent / f"{final.name}.{uuid.uuid4().hex}.tmp"
  (new / "shards").mkdir(parents=True)
  try:
    job = engine.make_job(source, settings, engine.parts_of(source, settings), new)
    pipeline = beam.Pipeline(options=PipelineOptions([f"--runner={_RUNNERS.get(runner, runner)}", *options]))
    _build(pipeline, job)
    try:
      pipeline.run().wait_until_finish()
    except InputError:
      raise
    except Exception as e:
      why = failures.reason(e) or first_line(e)
      raise InputError(f"the pipeline failed: {why}") from e
    tally = transforms.Tally()
    reasons, places, dropped = read_json(new / "tally.json", list, "start again")
    tally.update(reasons, (place for _, place in places))
    tally.keep(row for _, row in dropped)
    manifests.check_broken(tally, max_broken)
    manifests.write(new, description, tally, _name_shards(new))
    if "://" in os.fspath(final):
      work_folder.copy(new, final)
    else:
      new.rename(final)
  finally:
    if new.exists():
      new.rmtree()
  say(f"wrote {final}")
  return final


def _build(pipeline: Any, job: engine.Job) -> None:
  read = (pipeline | "parts" >> beam.Create(list(enumerate(job.parts))) | beam.Reshuffle()
          | "read" >> beam.FlatMap(functools.partial(_read, job)).with_outputs("values", "tallies", main="pairs"))
  joined = (read.values | "keys" >> beam.GroupByKey()
            | "join" >> beam.FlatMap(functools.partial(_join, job)).with_outputs("tallies", main="pairs"))
  pairs = (read.pairs, joined.pairs) | "pairs" >> beam.Flatten()
  if job.plan.near_duplicates:
    dealt = pairs | "deal" >> beam.GroupByKey()
    candidates = (dealt | "near" >> beam.FlatMap(_bands) | "bands" >> beam.GroupByKey()
                  | "match" >> beam.FlatMap(functools.partial(_candidates, job)))
    earlier = ({"pairs": pairs, "later": candidates} | "beside" >> beam.CoGroupByKey()
               | "earlier" >> beam.FlatMap(functools.partial(_earlier, job)))
  else:
    earlier = pipeline | "none" >> beam.Create([])
  written = ({"pairs": pairs, "earlier": earlier} | "buckets" >> beam.CoGroupByKey()
             | "write" >> beam.Map(functools.partial(_write, job)))
  _ = ((read.tallies, joined.tallies, written) | "tallies" >> beam.Flatten()
       | beam.CombineGlobally(_merge) | "tally" >> beam.Map(functools.partial(_write_tally, job.work)))


def _read(job: engine.Job, numbered: tuple[int, Any]) -> Iterator[Any]:
  data_root.set_data_dir(job.data_dir)
  tally, (part_number, part) = transforms.Tally(), numbered
  for number, item in enumerate(transforms.read(job.plan, part, tally)):
    order = (0, part_number, number)
    if isinstance(item, Pair):
      yield buckets.bucket_of(item.digest, job.buckets), (item.digest, order, *item[1:])
    else:
      yield beam.pvalue.TaggedOutput("values", (item.key, (order, item.value)))
  yield beam.pvalue.TaggedOutput("tallies", _plain(tally, 0, f"{part_number:08d}"))


def _join(job: engine.Job, group: tuple[str, Iterable[Any]]) -> Iterator[Any]:
  data_root.set_data_dir(job.data_dir)
  tally, (key, values) = transforms.Tally(), group
  joined = transforms.join(job.plan, key, [value for _, value in sorted(values)], tally)
  for number, pair in enumerate(joined):
    order = (1, buckets.hash_of(key), number)
    yield buckets.bucket_of(pair.digest, job.buckets), (pair.digest, order, *pair[1:])
  if tally.reasons:
    yield beam.pvalue.TaggedOutput("tallies", _plain(tally, 1, buckets.hash_of(key).hex()))


def _in_order(pairs: Iterable[Any]) -> list[Pair]:
  return [Pair(digest, *pair) for digest, _, *pair in sorted(pairs)]


def _bands(group: tuple[int, Iterable[Any]]) -> Iterator[tuple[bytes, bytes]]:
  return near_pairs.bands_of(transforms.different(_in_order(group[1])))


def _candidates(job: engine.Job, group: tuple[bytes, Iterable[bytes]]) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
  for first, later in near_pairs.candidates(group[1]):
    yield buckets.bucket_of(first, job.buckets), (first, later)


def _earlier(job: engine.Job, group: tuple[int, dict[str, Iterable[Any]]]) -> Iterator[Any]:
  for digest, first in near_pairs.earlier(transforms.different(_in_order(group[1]["pairs"])), group[1]["later"]):
    yield buckets.bucket_of(digest, job.buckets), (digest, *first)


def _write(job: engine.Job, group: tuple[int, dict[str, Iterable[Any]]]) -> Any:
  tally, (bucket, of) = transforms.Tally(), group
  pairs = _in_order(of["pairs"])
  others = [(digest, near_pairs.Earlier(*earlier)) for digest, *earlier in of["earlier"]]
  by_split = lambda pair: pair.split  # noqa: E731
  for split, chosen in itertools.groupby(sorted(transforms.kept(pairs, tally, others), key=by_split), by_split):
    with atomic.replacing(epath.Path(job.work) / "shards" / f"{split}-{bucket:06d}") as f:  # May be done twice at once.
      for pair in chosen:
        records.write_record(f, pair.record)
  return _plain(tally, 2, f"{bucket:08d}")


def _plain(tally: transforms.Tally, stage: int, task: str) -> tuple[dict[str, int], list, list]:
  """With the order in which the engine comes to what is shown."""
  places, dropped = ([((stage, task, number), of) for number, of in enumerate(shown)]
                     for shown in (tally.places, tally.dropped))
  return dict(tally.reasons), places, dropped


def _merge(tallies: Iterable[Any]) -> Any:
  merged, places, dropped = transforms.Tally(), list[Any](), list[Any]()
  for reasons, of_places, of_dropped in tallies:
    merged.update(reasons, ())
    places = _first([*places, *of_places])[:KEPT_PLACES]
    dropped = _first([*dropped, *of_dropped])
    of_reason = collections.Counter[str]()
    kept = []
    for order, row in dropped:
      reason = row["reason"].partition(" ")[0]
      of_reason[reason] += 1
      if of_reason[reason] <= transforms.KEPT_EXAMPLES:
        kept.append((order, row))
    dropped = kept
  return dict(merged.reasons), places, dropped


def _first(shown: list) -> list:
  return sorted(shown, key=lambda ordered: tuple(ordered[0]))


def _write_tally(work: str, tally: Any) -> None:
  atomic.write_json(epath.Path(work) / "tally.json", tally, indent=None)


def _name_shards(new: epath.Path) -> dict[str, dict[str, int]]:
  splits: dict[str, dict[str, int]] = {}
  for split in manifests.SPLITS:
    found = sorted((new / "shards").glob(f"{split}-??????"))
    for number, path in enumerate(found):
      named = new / manifests.shard_name(split, number, len(found))
      path.rename(named)
      splits.setdefault(split, {})[named.name] = named.stat().length
  (new / "shards").rmtree()
  for left in (new / "tally.json", new / "tested.npz"):
    left.unlink(missing_ok=True)
  return splits
