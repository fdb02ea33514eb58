"""Ranges of numbers, as parts of types: `temperature: Annotated[float, Range(above=0)]`."""

import math
import numbers
from dataclasses import dataclass, replace
from typing import Annotated, Any, NamedTuple

MOST = 2**31 - 1  # What an int32, such as the step or a shape, can hold.


@dataclass(frozen=True)
class Range:
  """Of a number: least <= number <= most, above < number < below. Where nothing is said of an end, it is open."""

  least: float | None = None
  most: float | None = None
  above: float | None = None
  below: float | None = None
  why: str = ""

  def holds(self, number: Any) -> bool:
    """Whether the number is inside."""
    return ((self.least is None or number >= self.least) and (self.most is None or number <= self.most) and
            (self.above is None or number > self.above) and (self.below is None or number < self.below))

  def words(self, whole: bool, value: Any) -> str:
    """What has to be given instead of the value."""
    too_much = not isinstance(value, bool) and isinstance(value, numbers.Real) and Range(
        above=MOST, below=math.inf).holds(value)
    self = replace(self, most=None) if self.most == MOST and not too_much else self
    low = f"{self.least:,}" if self.least is not None else f"above {self.above:,}" if self.above is not None else ""
    high = f"{self.most:,}" if self.most is not None else f"below {self.below:,}" if self.below is not None else ""
    what = "a whole number" if whole else "a number"
    if low and high:
      to = "up to " * (self.most is not None)
      what += f" from {low} to {high}" if self.above is None else f" {low} and {to}{high}"
    elif whole and self.least == 1:
      what = "a positive whole number"
    elif low:
      what += f" of {low} or more" if self.above is None else f" {low}"
    elif high:
      what += f" of at most {high}" if self.below is None else f" {high}"
    return what + (f" ({self.why})" if self.why else "")


class Says(NamedTuple):
  """Says in words what a type is: `Annotated[..., Says("a list of gin files")]`."""

  text: str


Positive = Annotated[int, Range(1, MOST)]
NonNegative = Annotated[int, Range(0, MOST)]
Seed = Annotated[int, Range(0, 2**32 - 1)]
Length = Annotated[int, Range(2, MOST, why="a token and EOS")]
Share = Annotated[float, Range(0, 1)]
