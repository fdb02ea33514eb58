"""Numbers in a pickle of `{key: {key: number}}`, read as a stream: the whole takes 20 GB as Python objects.

No object is ever made and no function called, whatever the pickle says: its instructions are carried out here, and
those that plain dicts, strings and numbers do not need are refused. The scores of cross-encoder/ms-marco-MiniLM-L-6-v2
that sentence-transformers publishes have this form.
"""

import struct
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from gtr_jax.errors import InputError
from gtr_jax.io import lines


class _Name(NamedTuple):
  """A class or function that a pickle refers to; it is not looked up."""

  module: str
  name: str


class _NumpyType(NamedTuple):
  code: str


_DICTS = {("collections", "defaultdict"), ("collections", "OrderedDict"), ("builtins", "dict")}
_NUMPY = {"f2": struct.Struct("<e"), "f4": struct.Struct("<f"), "f8": struct.Struct("<d")}
_BYTE, _UINT = struct.Struct("<B"), struct.Struct("<I")
_FIXED = {b"J": struct.Struct("<i"), b"K": _BYTE, b"M": struct.Struct("<H"), b"G": struct.Struct(">d")}
_SIZED = {b"X": _UINT, b"\x8c": _BYTE, b"B": _UINT, b"C": _BYTE}  # Strings and bytes: what holds their length.
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}
_KEPT = (str, _Name, _NumpyType)  # What may be referred to again; dicts and numbers are not, and would fill the memory.


def read_nested(path: str) -> Iterator[tuple[str, dict[str, float]]]:
  """(key, its dict) of a pickled dict of dicts, with keys as strings; also of a compressed file.

  Raises:
    InputError: the file is no pickle, is cut off, or holds something else than dicts, strings and numbers.
  """
  with lines.open_file(path, text=False) as f:
    try:
      for key, inner in _items(f):
        lines.progress.lines += 1
        yield str(key), {str(k): float(v) for k, v in inner.items()}
    except (_Refused, struct.error, ValueError, TypeError, KeyError, IndexError, AttributeError) as e:
      raise InputError(f"{path}: not a pickle of {{query id: {{passage id: score}}}} ({_reason(e)}); give the scores "
                       'as JSON lines instead: {"qid": ..., "scores": {"pid": ...}}') from e


class _Refused(Exception):
  """The pickle holds what is not carried out."""


def _reason(e):
  if isinstance(e, struct.error):
    return "it is cut off"
  return str(e) if isinstance(e, _Refused) else "it holds something else than dicts, strings and numbers"


def _items(f: BinaryIO) -> Iterator[tuple[Any, dict]]:
  """The items of the outermost dict. https://docs.python.org/3/library/pickletools.html names the instructions."""
  stack, outer_stacks, memo, memo_size = [], [], {}, 0
  read = f.read

  def number(form):
    return form.unpack(read(form.size))[0]

  def exactly(n):
    if len(data := read(n)) != n:
      raise struct.error
    return data

  while True:
    op = read(1)
    if op in _FIXED:
      stack.append(number(_FIXED[op]))
    elif op in _SIZED:
      data = exactly(number(_SIZED[op]))
      stack.append(data.decode() if op in b"X\x8c" else data)
    elif op == b"\x94":  # MEMOIZE
      if isinstance(stack[-1], _KEPT):
        memo[memo_size] = stack[-1]
      memo_size += 1
    elif op in b"qr" and op:  # BINPUT, LONG_BINPUT
      index = number(_BYTE if op == b"q" else _UINT)
      if isinstance(stack[-1], _KEPT):
        memo[index] = stack[-1]
    elif op in b"hj" and op:  # BINGET, LONG_BINGET
      index = number(_BYTE if op == b"h" else _UINT)
      if index not in memo:
        raise _Refused("the same dict or number twice")
      stack.append(memo[index])
    elif op in _TUPLES:
      stack[-_TUPLES[op]:] = [tuple(stack[-_TUPLES[op]:])]
    elif op == b"R":
      called, arguments = stack[-2:]
      stack[-2:] = [_made(called, arguments)]
    elif op == b"}":
      stack.append({})
    elif op == b"(":
      outer_stacks.append(stack)
      stack = []
    elif op in b"us" and op:  # SETITEMS, SETITEM
      if op == b"u":
        items, stack = stack, outer_stacks.pop()
      else:
        items = [stack.pop(-2), stack.pop()]
      pairs = zip(items[::2], items[1::2], strict=True)
      if len(stack) == 1 and not outer_stacks:
        yield from pairs
      else:
        stack[-1].update(pairs)
    elif op in _CONSTANTS:
      stack.append(_CONSTANTS[op])
    elif op == b"t":
      items, stack = stack, outer_stacks.pop()
      stack.append(tuple(items))
    elif op == b")":
      stack.append(())
    elif op == b"\x8a":  # LONG1
      stack.append(int.from_bytes(exactly(number(_BYTE)), "little", signed=True))
    elif op == b"c":
      stack.append(_Name(*(f.readline().decode().rstrip("\n") for _ in range(2))))
    elif op == b"\x93":  # STACK_GLOBAL
      stack[-2:] = [_Name(*stack[-2:])]
    elif op == b"b":  # BUILD: the byte order of a numpy type.
      if not isinstance(stack[-2], _NumpyType) or stack.pop()[1] not in ("<", "|", "="):
        raise _Refused("an object's state")
    elif op == b"\x80":
      exactly(1)
    elif op == b"\x95":  # FRAME
      exactly(8)
    elif op == b".":
      if stack != [{}]:
        raise _Refused("not a dict")
      return
    elif not op:
      raise struct.error
    else:
      raise _Refused(f"instruction {op!r}")


def _made(called: Any, arguments: tuple) -> Any:
  """What the calls that are allowed would return: a number of numpy, a type of it, an empty dict."""
  if isinstance(called, _Name) and called.name == "scalar" and called.module.endswith("multiarray"):
    return _NUMPY[arguments[0].code].unpack(arguments[1])[0]
  if called in _DICTS:
    return {}
  if called == ("numpy", "dtype"):
    return _NumpyType(arguments[0])
  if called == ("_codecs", "encode") and arguments[1:] == ("latin1",):  # Bytes, before protocol 3.
    return arguments[0].encode("latin1")
  raise _Refused(f"an object of {'.'.join(called)}" if isinstance(called, _Name) else "a call")
