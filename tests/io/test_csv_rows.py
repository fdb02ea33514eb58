"""Quotes in TSV, which some writers use and most do not."""

import csv

import pytest

from gtr_jax.io import csv_rows
from gtr_jax.io.lines import Part


def read(path, on_broken=None):
  return [tuple(row.values()) for _, row in csv_rows.read(Part(str(path)), on_broken=on_broken)]


@pytest.mark.parametrize("rows, quoting", [
    ([("q0", "first line 0\nsecond line 0"), ("q1", "plain"), ("q2", 'says "so"\n\nand\ttabs')], csv.QUOTE_MINIMAL),
    ([("q0", "first\nsecond"), ("q1", "plain")], csv.QUOTE_ALL),
    ([(f"q{i}", f"first line {i}\nsecond\tline {i}") for i in range(4)], csv.QUOTE_MINIMAL),  # Each line looks whole.
    ([(f"q{i}", "a\nb\tc\nd") for i in range(700)], csv.QUOTE_MINIMAL),  # More lines than are looked at.
])
def test_as_a_writer_of_csv_has_them(tmp_path, rows, quoting):
  path = tmp_path / "x.tsv"
  with path.open("w", newline="") as file:
    csv.writer(file, delimiter="\t", quoting=quoting).writerows([("query", "positive"), *rows])
  assert read(path) == rows


def test_that_enclose_no_cell(tmp_path):
  """Of lines that are each a row, though a writer of CSV could have meant another; and where one is cut short."""
  rows = [("q0", '"well'), ("q1", "plain"), ("q2", 'he said "so'), ("q3", 'end"')]
  text = "".join(f"{query}\t{passage}\n" for query, passage in [("query", "positive"), *rows])
  path, broken = tmp_path / "x.tsv", []
  path.write_text(text)
  assert read(path) == rows
  path.write_text(text + "cut\n")
  assert read(path, lambda *of: broken.append(of)) == rows and len(broken) == 1
