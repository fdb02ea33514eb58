"""Lines of metrics.jsonl, as runs are compared by them."""

from collections.abc import Mapping


def without_times(line: Mapping[str, float]) -> dict[str, float]:
  """What does not depend on how fast a machine is, or on how often a run was started."""
  return {name: value for name, value in line.items() if "per_second" not in name and not name.startswith("time/")}
