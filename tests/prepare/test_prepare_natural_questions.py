"""Natural Questions in both forms in which it is published."""

import argparse
import json

import pytest
from prepared_in_memory import prepared

from gtr_jax.prepare.sources import natural_questions

TEXT = ("<H1> Alan Turing </H1> <P> Turing was born in London , in 1912 ( England ) . </P> <Ul> <Li> Enigma </Li> "
        "<Li> `` Bombe '' </Li> </Ul> <Table> <Tr> <Td_colspan=\"2\"> 1912 </Td> </Tr> </Table>")
PAGE = TEXT.split(" ")
SPANS = {kind: (PAGE.index(f"<{kind}>"), PAGE.index(f"</{kind}>") + 1) for kind in ("P", "Ul", "Table")}
NONE = (-1, -1)


def row(number, *spans, original=False):
  text = {"document_tokens": [{"token": token, "html_token": token[0] == "<"} for token in PAGE]} if original else {
      "document_text": TEXT}
  return {"example_id": number, "question_text": f"question {number}", "annotations": [
      {"long_answer": {"start_token": start, "end_token": end, "candidate_index": 0}} for start, end in spans]} | text


def run(folder, rows, *flags):
  (folder / "nq.jsonl").write_text("".join(json.dumps(of) + "\n" for of in rows))
  parser = argparse.ArgumentParser()
  natural_questions.add_arguments(parser)
  examples, counts = prepared(natural_questions.source(parser.parse_args([str(folder / "nq.jsonl"), *flags])))
  return [(of.query, of.passage) for of in examples], counts


@pytest.mark.parametrize("original", [False, True])
def test_long_answers_are_passages(tmp_path, original):
  rows = [row(number, SPANS[kind], original=original) for number, kind in enumerate(SPANS)] + [row(9, NONE)]
  pairs, counts = run(tmp_path, rows)
  assert pairs == [("question 0", "Alan Turing Turing was born in London, in 1912 (England)."),
                   ("question 1", 'Alan Turing Enigma " Bombe "'), ("question 2", "Alan Turing 1912")]
  assert counts.reasons["no_long_answer"] == 1 and not counts.reasons["broken"]


def test_kinds_are_chosen(tmp_path):
  rows = [row(number, SPANS[kind]) for number, kind in enumerate(SPANS)]
  pairs, counts = run(tmp_path, rows, "--kinds", "lists", "tables")
  assert [query for query, _ in pairs] == ["question 1", "question 2"]
  assert counts.reasons["another_kind_of_answer"] == 1


def test_of_several_annotators_two_must_agree(tmp_path):
  rows = [row(0, SPANS["P"], NONE, NONE, NONE, NONE), row(1, SPANS["P"], SPANS["P"], NONE, NONE, NONE),
          row(2, SPANS["P"], SPANS["Ul"], SPANS["Ul"], SPANS["P"], NONE)]
  assert [query for query, _ in run(tmp_path, rows)[0]] == ["question 1", "question 2", "question 2"]


@pytest.mark.parametrize("broken", [{"question_text": "q"}, [], {"example_id": 1, "question_text": None},
                                    row(1, SPANS["P"]) | {"annotations": [{"long_answer": None}]}])
def test_broken_lines_are_counted(tmp_path, broken):
  pairs, counts = run(tmp_path, [row(0, SPANS["P"]), broken])
  assert len(pairs) == counts.reasons["broken"] == 1
  assert "nq.jsonl:2: not an example of Natural Questions" in counts.places[0]
