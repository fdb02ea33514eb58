"""How the fields of a pair are spelled, and which that nobody names may change what it means."""

import json

import pytest
from prepared_in_memory import prepared

from gtr_jax.errors import InputError
from gtr_jax.prepare.sources.field_names import folded_name
from gtr_jax.prepare.sources.pairs_jsonl import PairsJsonl


@pytest.fixture
def source(tmp_path):
  def of(*rows, **given):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return PairsJsonl((str(path),), **given)
  return of


def made(source):
  examples, counts = prepared(source)
  assert not counts.places, counts.places
  return examples


@pytest.mark.parametrize(("written", "name"), [
    ("hardNegatives", "hard_negatives"), ("HardNegatives", "hard_negatives"), ("hard-negatives", "hard_negatives"),
    ("Hard Negatives", "hard_negatives"), ("HARD_NEGATIVES", "hard_negatives"), ("queryID", "query_id"),
    ("docId", "doc_id"), ("sentence1", "sentence1"), ("_id", "_id"), ("negative_1", "negative_1")])
def test_spellings_of_one_name(written, name):
  assert folded_name(written) == name


@pytest.mark.parametrize("spell", [
    lambda name: name, str.upper, lambda name: name.replace("_", "-"), lambda name: name.replace("_", " ").title(),
    lambda name: name.title().replace("_", ""), lambda name: name[0] + name.title().replace("_", "")[1:]],
    ids=["snake_case", "CAPITALS", "kebab-case", "Spaces Between", "PascalCase", "camelCase"])
def test_a_field_is_known_in_any_spelling(source, spell):
  row = {"query": "a", "query_id": "q", "pos": ["b"], "hard_negatives": ["n"], "negative_text": "m",
         "neg_scores": [1, 2], "pos_scores": [3], "pos_ids": [1], "query_vector": [0.5]}
  example, = made(source({spell(name): value for name, value in row.items()}))
  assert (example.query, example.passage, example.negatives, example.scores, example.query_id, example.passage_id,
          len(example.vectors)) == ("a", "b", ("n", "m"), (3.0, 1.0, 2.0), "q", "1", 4)
  for label in ("is_duplicate", "is_relevant"):
    answer, none = made(source({"query": "a", "passage": "b", spell(label): 1},
                               {"query": "a", "passage": "c", spell(label): 0}))
    assert not answer.is_negative and none.is_negative


def test_two_that_differ_in_their_spelling_alone(source):
  """Each is what it is: one is known as it is written, and the other may change what the pair means."""
  row = {"query": "a", "positive": "b", "is_duplicate": 1, "isDuplicate": 0}
  with pytest.raises(InputError, match=r"a field 'isDuplicate', which may change .* \(--ignore isDuplicate\)"):
    source(row).parts()
  example, = made(source(row, ignore=("isDuplicate",)))
  assert not example.is_negative


def test_names_that_are_given_are_those_of_the_file(source):
  row = {"headLine": "a", "theBody": "b", "badOnes": ["n"], "Label": 1, "Category": "c"}
  given = {"query": ("headLine",), "passage": ("theBody",), "negatives": "badOnes"}
  example, = made(source(row, **given))
  assert (example.query, example.passage, example.negatives) == ("a", "b", ("n",))
  assert source(row, **given).fields() == ['query: "headLine"; passage: "theBody"; negatives: "badOnes"; label '
                                           '(1: a pair, 0: a negative): "Label"; not read: Category']
  with pytest.raises(InputError, match="no field 'headline', only 'headLine'"):
    source(row, **given | {"query": ("headline",)}).parts()


JUDGING = ["duplicates", "isduplicate", "is_dup", "judgments", "irrelevants", "nonrelevant", "similarities",
    "is_correct", "correct", "is_positive", "is_match", "is_selected", "is_impossible", "is_answerable",
    "is_paraphrase", "paraphrase", "is_similar", "target", "class", "rating", "stars", "qrel", "qrels", "margin",
    "logit", "logits", "rejected", "contradiction", "weight", "teacherScore", "relevanceScore", "isCorrect",
    "isMatch", "IsSelected", "ratings", "labelText", "entailment", "unanswerable", "known_positives",
    "positive_passage_2", "other_answers", "alternativeAnswers", "additional_positive", "rel", "rels", "is_rel",
    "user_rating", "avgRating", "is_accepted", "accepted", "is_answer", "has_answer", "hasAnswers", "judged",
    "is_accepted_answer", "contains_answer", "supports", "is_supporting", "is_evidence", "is_pertinent", "relatedness",
    "same_meaning", "helpfulness", "truth", "reward", "prob", "probability", "cosine",
    "manually_judged", "is_good", "bad", "is_useful", "helpful", "quality", "answer_quality", "related", "is_related",
    "unrelated", "is_matching", "mismatch", "mismatched", "is_supported", "unsupported", "partially_supported", "sim",
    "cos_sim", "distance", "confidence", "preference", "verdict", "llm_verdict", "annotation", "nli", "polarity",
    "semantically_equivalent", "semantic_equivalence", "non_equivalent", "answerability", "is_duplicated", "dissimilar",
    "clicked", "chosen", "bad_passages", "unrelated_docs", "gold_answers", "valid_answers", "acceptable_answers",
    "accepted_answer", "best_answer", "gold_passages", "passages", "documents", "ctxs", "passage_2", "answer_2",
    "document3"]
METADATA = ["title", "id", "url", "source", "target_language", "category", "views", "date", "class_name",
    "productClass", "language", "timestamp", "author", "num_negatives", "n_positives", "label_count", "weighting",
    "matcher", "selection", "paraphraser", "contents", "positional", "scoreboard", "answers", "tags", "meta", "rank",
    "domain", "other", "true_case", "lang", "subreddit", "votes", "upvotes", "helpful_vote", "verified_purchase",
    "rating_count", "n_ratings", "rights", "goods_id", "license", "is_answered", "accepted_answer_id", "answer_start",
    "answer_type", "gold_passage_id", "question_type", "related_questions", "similar_questions", "badge", "release_day",
    "relation", "relative_path", "simple", "quality_control", "confidential", "distance_unit", "annotator",
    "preferences_url", "doc", "context", "contexts", "text", "body", "abstract", "passage_title", "passage_id_2",
    "hardness", "negotiation", "num_answers", "number_of_docs", "num_passages", "match_id", "created_utc", "is_self"]


@pytest.mark.parametrize("name", JUDGING)
def test_what_may_change_the_meaning_is_an_error_that_names_it(source, name):
  named = {"query": ("q",), "passage": ("p",)}
  for row, given in (({"query": "a", "positive": "b"}, {}), ({"q": "a", "p": "b"}, named)):
    with pytest.raises(InputError, match=rf"a field '{name}', which may change .* \(--ignore {name}\)"):
      source(row | {name: 0}, **given).parts()
    assert len(made(source(row | {name: 0}, ignore=(name,), **given))) == 1
  with pytest.raises(InputError, match=f"a field '{name}'"):
    source({"query": "a", "pos": [{"text": "b", name: 0}]}).parts()


@pytest.mark.parametrize("name", METADATA)
def test_other_fields_are_nothing_to_a_pair(source, name):
  of = source({"query": "a", "positive": "b", name: 0})
  assert len(made(of)) == 1 and of.fields()[0].endswith(f"not read: {name}")


@pytest.mark.parametrize(("row", "passages"), [
    ({"query": "a", "positive": "b", "positive_2": "c"}, ["b", "c"]),
    ({"anchor": "a", "positive_1": "b", "positive_2": "c", "positive_3": ""}, ["b", "c"]),
    ({"query": "a", "positive1": "b", "positive2": ["c", "d"], "positive3": None}, ["b", "c", "d"]),
    ({"query": "a", "positive": "b", "positive_2": "c", "negative_1": "C", "negative_2": "n"}, ["b", "c"])])
def test_positives_with_numbers(source, row, passages):
  examples = made(source(row))
  assert [example.passage for example in examples] == passages
  assert {example.negatives for example in examples} == {("n",) if "negative_2" in row else ()}


@pytest.mark.parametrize(("row", "name"), [
    ({"question": "a", "answer": "b", "answer_2": "c"}, "answer_2"),
    ({"query": "a", "passage": "b", "passage2": "c"}, "passage2"),
    ({"title": "a", "body": "b", "Body 2": "c"}, "Body 2"),
    ({"question": "a", "answer": "b", "answers": ["b", "c"], "negatives": ["c"]}, "answers"),
    ({"query": "a", "document": "b", "documents": ["c"]}, "documents"),
    ({"query": "a", "text": "b", "texts": ["b", "c", "d"]}, "texts"),
    ({"sentence_1": "a", "sentence_2": "b", "sentence_3": "c"}, "sentence_3"),
    ({"question": "a", "answer": "b", "passage_2": "c"}, "passage_2"),
    ({"title": "a", "text": "b", "answer_2": "c"}, "answer_2")])
def test_another_passage_of_the_name(source, row, name):
  with pytest.raises(InputError, match=f"a field '{name}', which may change what the pair means, and is not known"):
    source(row).parts()


def test_all_that_is_right_goes_to_one_field(source):
  with pytest.raises(InputError, match="write all that answers the query as a list in 'pos', or if 'answers' means"):
    source({"question": "a", "answer": "b", "answers": ["b", "c"]}).parts()


def test_the_label_of_a_post_may_be_its_topic(source):
  row = {"title": "a", "Text": "b", "Label": 0}
  with pytest.raises(InputError, match="a 'Label' beside 'title' and 'Text', which may say what they are about; if 0 "
                                       r"says .*, name them \(--query, --passage\), or .* \(--ignore Label\)"):
    source(row).parts()
  assert [example.is_negative for example in made(source(row, query=("title",), passage=("Text",)))] == [True]
  assert [example.is_negative for example in made(source(row, ignore=("Label",)))] == [False]


def test_what_readers_think_of_a_post_is_nothing_to_it(source):
  of = source({"title": "a", "text": "b", "rating": 5, "stars": 3, "score": 7, "average_rating": 4, "helpful": 1})
  assert [example.scores for example in made(of)] == [()]
  assert of.fields()[0].endswith("not read: rating, stars, score, average_rating, helpful")


@pytest.mark.parametrize("name", ["hardnegatives", "HARDNEGATIVES", "hardneg", "hardnegs", "negdocs",
                                  "negativepassages"])
def test_negatives_whose_name_is_one_word(source, name):
  for texts in (["n"], "n", '["n"]'):
    example, = made(source({"query": "a", "positive": "b", name: texts}))
    assert example.negatives == ("n",)
  named = {"query": ("q",), "passage": ("p",)}
  with pytest.raises(InputError, match=rf"a field '{name}', .* name it \(--negatives\), or "):
    source({"q": "a", "p": "b", name: ["n"]}, **named).parts()
  with pytest.raises(InputError, match=f"a field '{name}'"):
    source({"query": "a", "pos": [{"text": "b", name: ["n"]}]}).parts()


def test_labels_of_entailment(source):
  """Of fields that are named, too: 0 says there that the one follows from the other."""
  given = {"query": ("premise",), "passage": ("hypothesis",)}
  row = {"premise": "a", "hypothesis": "b", "label": 0}
  with pytest.raises(InputError, match="whose labels 0 often says .*--ignore label"):
    source(row, **given).parts()
  assert [example.is_negative for example in made(source(row, ignore=("label",), **given))] == [False]


@pytest.mark.parametrize("score", ["Infinity", "-Infinity", "1e999", '"1e999"'])
def test_scores_are_finite(source, score):
  good = {"query": "a", "positive": "b", "positive_score": 1}
  examples, counts = prepared(source(good, f'{{"query": "a", "positive": "c", "positive_score": {score}}}'))
  assert [example.scores for example in examples] == [(1.0,)]
  assert counts.reasons == {"broken": 1} and "'positive_score' has " in counts.places[0]
  assert "inf, which is not finite; correct it, or if" in counts.places[0]


def test_lines_without_a_passage_are_counted_and_shown(source):
  rows = [{"query": "a", "pos": ["b"]}, {"query": "c", "pos": [], "neg": ["n"]}, {"query": "d", "pos": None},
          {"set": ["only"]}, {"set": []}]
  examples, counts = prepared(source(*rows))
  assert [example.query for example in examples] == ["a"] and counts.reasons == {"no_passage": 4}


def test_a_name_that_no_line_has(source, tmp_path):
  rows = [{"q": "a", "p": "b"}] * 1100
  given = {"query": ("q",), "passage": ("p",)}
  for more, said in (({"negatives": "bda"}, r"'bda' \(--negatives\)"),
                     ({"ignore": ("labell",)}, r"'labell' \(--ignore\)"),
                     ({"negatives": "bad", "ignore": ("labell",)}, r"'labell' \(--ignore\)")):
    with pytest.raises(InputError, match=f"pairs.jsonl: no line has a field {said}; correct the name, or leave it out"):
      source(*rows, {"q": "a", "p": "c", "bad": ["n"]}, **given, **more).parts()
  late = source(*rows, {"q": "a", "p": "c", "bad": ["n"], "Label": 0}, **given, negatives="bad", ignore=("label",))
  assert made(late)[-1].negatives == ("n",) and not made(late)[-1].is_negative
  (tmp_path / "more.csv").write_text("q,p,bad\nx,y,z\n")
  several = PairsJsonl((*source(*rows, **given).paths, str(tmp_path / "more.csv")), **given, negatives="bad")
  assert made(several)[-1].negatives == ("z",)
  within = source({"query": "a", "pos": [{"text": "b", "label": 0}]}, ignore=("label",))
  assert len(made(within)) == 1
