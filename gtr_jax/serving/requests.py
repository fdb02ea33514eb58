"""What clients send: the bodies of requests, checked by pydantic, which also describes them in OpenAPI's form."""

from typing import Annotated, Any, Literal

from pydantic import (
  BaseModel,
  BeforeValidator,
  ConfigDict,
  Field,
  StrictBool,
  StrictFloat,
  StrictInt,
  StrictStr,
  model_validator,
)


def _whole(value: Any) -> Any:
  """3.0 is a whole number in JSON too, and is what some languages write; "3" and true are none."""
  if isinstance(value, list) and float in set(map(type, value)):
    return [_whole(item) for item in value]
  return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[StrictStr, Field(min_length=1)]
Texts = Annotated[list[Text], Field(min_length=1)]
Ids = Annotated[list[Annotated[StrictInt, Field(ge=0, lt=2**31)]], Field(min_length=1), BeforeValidator(_whole)]
Side = Literal["query", "document"]
SIDE_OF_PREFIX: dict[str, Side | None] = {"": None, "/query": "query", "/document": "document"}
"""Which side paths that begin so are of, whatever is sent; None: as is sent."""
_Positive = Annotated[StrictInt, Field(ge=1, lt=2**31), BeforeValidator(_whole)]


class _Body(BaseModel):
  """Fields of other names are refused: a misspelt one would be ignored."""

  model_config = ConfigDict(extra="forbid")


class EmbeddingsBody(_Body):
  """POST /v1/embeddings, as OpenAI defines it."""

  input: Text | Texts | Ids | Annotated[list[Ids], Field(min_length=1)] = Field(
      description="a text, texts, or (only where the server was started with --accept_token_ids) token ids")
  model: StrictStr | None = Field(None, description="a name of GET /v1/models; default: the first one")
  encoding_format: Literal["float", "base64"] | None = Field(
      None, description="float (the default), or base64: of little-endian float32")
  dimensions: _Positive | None = Field(None, description="of the vectors, where the model is Matryoshka")
  user: StrictStr | None = Field(None, description="not used")
  input_type: Side | None = Field(None, description="whose prompt and length: query, or document (the default)")
  truncate: StrictBool | None = Field(None, description="cut texts that are too long (the default), or refuse them")


class EmbedBody(_Body):
  """POST /embed and POST /, as of text-embeddings-inference."""

  inputs: Text | Texts = Field(description="a text or texts")
  normalize: StrictBool | None = Field(
      None, description="true (the default): vectors of length 1; false: as the model makes them")
  truncate: StrictBool | None = Field(None, description="cut texts that are too long (the default), or refuse them")
  truncation_direction: Literal["right", "Right"] | None = Field(None, description="only right")
  prompt_name: Side | None = Field(None, description="the same as input_type")
  input_type: Side | None = Field(None, description="whose prompt and length: query, or document (the default)")
  dimensions: _Positive | None = Field(None, description="of the vectors, where the model is Matryoshka")

  @model_validator(mode="after")
  def _one_side(self):
    if self.prompt_name and self.input_type and self.prompt_name != self.input_type:
      raise ValueError("prompt_name and input_type are two names of one thing, and disagree; give one")
    return self


class SearchBody(_Body):
  """POST /search."""

  query: Text | Texts = Field(description="a query or queries")
  store: StrictStr | None = Field(None, description="a name of GET /stores; default: the first one")
  stores: Annotated[list[StrictStr], Field(min_length=1)] | None = Field(
      None, description="several, of one model and of vectors of one length, searched as if they were one")
  top_k: _Positive = Field(10, description="documents of an answer")
  id_prefix: StrictStr = Field("", description="only documents whose ids begin so")
  texts: StrictBool = Field(True, description="whether answers have titles and texts")
  hybrid: StrictBool | Annotated[StrictFloat, Field(ge=0, le=1)] = Field(
      False, description="search by BM25 too; a number: the weight of the model's score, 0 to 1")

  @model_validator(mode="after")
  def _one_way(self):
    if self.store is not None and self.stores is not None:
      raise ValueError("give store, the name of one, or stores, a list, not both")
    if self.stores is not None and self.hybrid is not False:
      raise ValueError("hybrid scores of several stores cannot be compared: give one store, or leave out hybrid")
    return self


class _Sentences(_Body):
  source_sentence: Text
  sentences: Texts


class SimilarityBody(_Body):
  """POST /similarity: queries and documents; or one of them and several, as of text-embeddings-inference."""

  model: StrictStr | None = Field(None, description="a name of GET /v1/models; default: the first one")
  queries: Text | Texts | None = Field(None, description="a query or queries")
  documents: Text | Texts | None = Field(None, description="a document or documents")
  inputs: _Sentences | None = Field(None, description="text-embeddings-inference's form, instead of both")
  parameters: dict[str, Any] | None = Field(None, description="not used: that of text-embeddings-inference")

  @model_validator(mode="after")
  def _one_form(self):
    if (self.inputs is None) == (self.queries is None and self.documents is None) or (
        self.inputs is None and (self.queries is None or self.documents is None)):
      raise ValueError("give queries and documents, or inputs with source_sentence and sentences")
    return self
