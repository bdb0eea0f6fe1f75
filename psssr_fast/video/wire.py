"""Values and frames as bytes, for a pipe whose other end is not trusted: JSON and raw pixels.

A message is its kind (one byte), the length of its JSON (4 bytes) and the JSON; arrays named in it
follow as raw bytes. Nothing is unpickled, and nothing is made that is larger than was allowed.
"""

import dataclasses
import functools
import json
import math
import struct
import types
import typing
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

INFO, FRAME, BEAT, END, ERROR, NOTE = range(6)  # kinds of message
HEADER = struct.Struct("<BI")
# Bytes of JSON that a message of a kind may have: Python's values take up to 30 times as many.
MAX_JSON = {INFO: 2**24, FRAME: 2**13, BEAT: 16, END: 2**24, ERROR: 2**16, NOTE: 2**12}
_INT64 = range(-(2**63), 2**63)

_DTYPES = ("uint8", "uint16", "float32")
_PLAIN = (bool, int, float, str, type(None))

ReadBytes = Callable[[memoryview], None]


def pack(kind: int, value: object) -> Iterator[bytes | memoryview]:
    """The parts of a message about a value: plain values, fractions, paths, dataclasses."""
    arrays: list[np.ndarray[Any, Any]] = []
    text = json.dumps(_to_json(value, arrays)).encode()
    yield HEADER.pack(kind, len(text)) + text
    for array in arrays:
        yield array.data.cast("B")


def _to_json(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    match value:
        case Fraction():
            return [value.numerator, value.denominator]
        case Path():
            return str(value)
        case bytes():
            return value.hex()
        case np.ndarray():
            arrays.append(np.ascontiguousarray(value))
            return {"dtype": value.dtype.name, "shape": value.shape}
        case list() | tuple():
            return [_to_json(item, arrays) for item in value]
        case dict():
            return {key: _to_json(item, arrays) for key, item in value.items()}
        case _ if isinstance(value, _PLAIN):
            return value
    names = [field.name for field in dataclasses.fields(value)]
    return {name: _to_json(getattr(value, name), arrays) for name in names}


class Unpacker:
    """Makes values of known types again.

    Args:
        read: fills a buffer with the bytes that come next.
        max_bytes: of one array.
    """

    def __init__(self, read: ReadBytes, max_bytes: int) -> None:
        self._read = read
        self._max_bytes = max_bytes

    def message(self) -> tuple[int, Any]:
        """Kind and JSON of the next message.

        Raises:
            ValueError: it is none.
        """
        kind, length = HEADER.unpack(self._bytes(HEADER.size))
        if length > MAX_JSON.get(kind, -1):
            raise ValueError("not a message")
        return kind, json.loads(self._bytes(length))

    def value(self, hint: Any, content: Any) -> Any:
        """The value of type ``hint`` whose JSON is ``content``; its arrays are read.

        Integers have 64 bits, floats are finite.

        Raises:
            ValueError: it is of another type. Others, such as ZeroDivisionError, where Python
                itself does not take it.
        """
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            if content is None and types.NoneType in arguments:
                return None
            # Beside None there are only arrays of several types, which the content tells apart.
            return self.value(
                next(item for item in arguments if item is not types.NoneType), content
            )
        if origin is typing.Literal:
            return _checked(content, content in arguments)
        if origin is np.ndarray:
            return self._array(content)
        if origin in (tuple, list):
            return self._items(origin, arguments, content)
        if origin is dict:
            items = _checked(content, isinstance(content, dict)).items()
            return {key: self.value(arguments[1], item) for key, item in items}
        return self._single(hint, content)

    def _single(self, hint: Any, content: Any) -> Any:
        if dataclasses.is_dataclass(hint):
            hints = _hints(typing.cast("Any", hint))
            _checked(content, isinstance(content, dict) and content.keys() == hints.keys())
            # In the order of the fields, which is that of the arrays.
            values = {name: self.value(hints[name], content[name]) for name in hints}
            return typing.cast("type[Any]", hint)(**values)
        if hint is Fraction:
            return Fraction(*self.value(tuple[int, int], content))
        if hint is Path or hint is bytes:
            text = _checked(content, isinstance(content, str))
            return Path(text) if hint is Path else bytes.fromhex(text)
        if hint is float:
            number = float(_checked(content, type(content) in (int, float)))
            return _checked(number, math.isfinite(number))
        if hint is int:
            return _checked(content, type(content) is int and content in _INT64)
        return _checked(content, type(content) is hint)

    def _items(self, origin: Any, arguments: tuple[Any, ...], content: Any) -> Any:
        _checked(content, isinstance(content, list))
        if origin is tuple and arguments[-1] is not Ellipsis:
            pairs = zip(arguments, content, strict=True)
            return tuple(self.value(hint, item) for hint, item in pairs)
        return origin(self.value(arguments[0], item) for item in content)

    def _array(self, content: Any) -> np.ndarray[Any, Any]:
        _checked(content, isinstance(content, dict) and content["dtype"] in _DTYPES)
        shape = self.value(tuple[int, ...], content["shape"])
        size = np.dtype(content["dtype"]).itemsize
        for side in shape:
            size *= _checked(side, side > 0)
        _checked(size, 0 < size <= self._max_bytes)
        array = np.empty(shape, content["dtype"])
        self._read(array.data.cast("B"))
        return array

    def _bytes(self, length: int) -> bytes:
        content = bytearray(length)
        self._read(memoryview(content))
        return bytes(content)


def _checked(value: Any, good: bool) -> Any:
    if not good:
        raise ValueError("a value of another type was expected")
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
