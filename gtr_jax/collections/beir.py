"""BEIR (Thakur et al. 2021, arXiv 2104.08663), MS MARCO and NanoBEIR: what each set is and how GTR is evaluated on it.

Sizes, addresses and checksums are those of BEIR's own table (github.com/beir-cellar/beir) and of ir_datasets; lengths
those of GTR (Ni et al. 2021, arXiv 2112.07899).
"""

from collections.abc import Mapping
from typing import NamedTuple


class BeirSet(NamedTuple):
  """A set.

  Attributes:
    name: its folder in BEIR; of a forum "cqadupstack/android", of NanoBEIR "nano-beir/scifact".
    title: its name in the papers.
    documents: how many it has.
    queries: how many have judgements in `split`.
    md5: of its zip file; "" where there is none to download.
    split: which judgements.
    query_length: most tokens of a query.
    document_length: most tokens of a document.
    exclude_own_id: queries are documents of the corpus, and are not to find themselves.
    measure: the one that is reported.
    hub_name: where NanoBEIR publishes it.
  """

  name: str
  title: str
  documents: int
  queries: int
  md5: str = ""
  split: str = "test"
  query_length: int = 64
  document_length: int = 512
  exclude_own_id: bool = False
  measure: str = "nDCG@10"
  hub_name: str = ""


CQADUPSTACK = "cqadupstack"
_BEIR = {of.name: of for of in (
    BeirSet("msmarco", "MS MARCO", 8_841_823, 6_980, "444067daf65d982533ea17ebd59501e4", split="dev", measure="MRR@10"),
    BeirSet("trec-covid", "TREC-COVID", 171_332, 50, "ce62140cb23feb9becf6270d0d1fe6d1"),
    BeirSet("bioasq", "BioASQ", 14_914_603, 500),
    BeirSet("nfcorpus", "NFCorpus", 3_633, 323, "a89dba18a62ef92f7d323ec890a0d38d"),
    BeirSet("nq", "NQ", 2_681_468, 3_452, "d4d3d2e48787a744b6f6e691ff534307"),
    BeirSet("hotpotqa", "HotpotQA", 5_233_329, 7_405, "f412724f78b0d91183a0e86805e16114"),
    BeirSet("fiqa", "FiQA", 57_638, 648, "17918ed23cd04fb15047f73e6c3bd9d9"),
    BeirSet("signal1m", "Signal-1M", 2_866_315, 97),
    BeirSet("trec-news", "TREC-NEWS", 594_589, 57, document_length=768),
    BeirSet("robust04", "Robust04", 528_036, 249, document_length=768),
    BeirSet("arguana", "ArguAna", 8_674, 1_406, "8ad3e3c2a5867cdced806d6503f29b99", query_length=512,
            exclude_own_id=True),
    BeirSet("webis-touche2020", "Touché-2020", 382_545, 49, "46f650ba5a527fc69e0a6521c5a23563"),
    BeirSet(CQADUPSTACK, "CQADupStack", 457_199, 13_145, "4e41456d7df8ee7760a7f866133bda78"),
    BeirSet("quora", "Quora", 522_931, 10_000, "18fb154900ba42a600f84b839c173167", exclude_own_id=True),
    BeirSet("dbpedia-entity", "DBPedia", 4_635_922, 400, "c2a39eb420a3164af735795df012ac2c"),
    BeirSet("scidocs", "SCIDOCS", 25_657, 1_000, "38121350fc3a4d2f48850f6aff52e4a9"),
    BeirSet("fever", "FEVER", 5_416_568, 6_666, "5a818580227bfb4b35bb6fa46d9b6c03"),
    BeirSet("climate-fever", "Climate-FEVER", 5_416_593, 1_535, "8b66f0a9126c521bae2bde127b4dc99d"),
    BeirSet("scifact", "SciFact", 5_183, 300, "5f7d1de60b170fc8027bb7898e2efca1"))}

FORUMS: Mapping[str, BeirSet] = {
    f"{CQADUPSTACK}/{name}": BeirSet(f"{CQADUPSTACK}/{name}", f"CQADupStack {name}", documents, queries)
           for name, documents, queries in (
               ("android", 22_998, 699), ("english", 40_221, 1_570), ("gaming", 45_301, 1_595), ("gis", 37_637, 885),
               ("mathematica", 16_705, 804), ("physics", 38_316, 1_039), ("programmers", 32_176, 876),
               ("stats", 42_269, 652), ("tex", 68_184, 2_906), ("unix", 47_382, 1_072), ("webmasters", 17_405, 506),
               ("wordpress", 48_605, 541))}

_NANO = {f"nano-beir/{name}": _BEIR[name]._replace(
    name=f"nano-beir/{name}", title=f"Nano {_BEIR[name].title}", documents=documents, queries=queries, md5="",
    split="test", measure="nDCG@10", hub_name=f"zeta-alpha-ai/{hub_name}")
         for name, hub_name, documents, queries in (
             ("arguana", "NanoArguAna", 3_635, 50), ("climate-fever", "NanoClimateFEVER", 3_408, 50),
             ("dbpedia-entity", "NanoDBPedia", 6_045, 50), ("fever", "NanoFEVER", 4_996, 50),
             ("fiqa", "NanoFiQA2018", 4_598, 50), ("hotpotqa", "NanoHotpotQA", 5_090, 50),
             ("msmarco", "NanoMSMARCO", 5_043, 50), ("nfcorpus", "NanoNFCorpus", 2_953, 50),
             ("nq", "NanoNQ", 5_035, 50), ("quora", "NanoQuoraRetrieval", 5_046, 50),
             ("scidocs", "NanoSCIDOCS", 2_210, 50), ("scifact", "NanoSciFact", 2_919, 50),
             ("webis-touche2020", "NanoTouche2020", 5_745, 49))}

SETS: Mapping[str, BeirSet] = {**_BEIR, **FORUMS, **_NANO}
"""All of them by name."""

SUITES = {"beir": tuple(_BEIR), "beir-public": tuple(name for name, of in _BEIR.items() if of.md5),
          "nano-beir": tuple(_NANO)}
"""What `--suite` evaluates: MS MARCO is in the first two, and in no average."""

def parts(name: str) -> tuple[str, ...]:
  """The collections that a set consists of: CQADupStack's twelve forums, else itself."""
  return tuple(FORUMS) if name == CQADUPSTACK else (name,)


def warnings(of: BeirSet, documents: int, queries: int, unknown: int) -> list[str]:
  """What is not as in BEIR, in words."""
  found = [f"{number:,} {what}, and BEIR's {of.name} has {expected:,}" for number, expected, what in
           ((documents, of.documents, "documents"), (queries, of.queries, "queries")) if number != expected]
  if unknown:
    found.append(f"{unknown:,} judgements of documents that are not in the corpus")
  return found
