"""Arrays that have one column per series, and their form in storage.

A group of columns is a dataclass whose fields are made by `column`. All series of a group are worked on at once, so they
are the last axis of every array. In storage the fields of one series lie side by side in a few bytes each.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

_STORED: Final = {
    "half": np.float16,
    "single": np.float32,
    "double": np.float64,
    "byte": np.uint8,
    "word": np.uint16,
    "long": np.int32,
}
HALF_MAX: Final = np.float32(60_000.0)  # float16 ends at 65,504

Single = NDArray[np.float32]
Double = NDArray[np.float64]
Flags = NDArray[np.bool_]
Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Form:
    """How one field is stored, per series. `unit` is the power of the series' unit that its values carry.

    A "half" is a float16 in storage and a float32 in memory; whoever writes one rounds it with `to_half` first, so that
    nothing changes by being stored. A "nibble" is an integer below 16; two of them share a byte.
    """

    stored: str
    shape: tuple[int, ...]
    fill: float
    unit: int


def column(stored: str, *shape: int, fill: float = 0.0, unit: int = 0) -> Any:
    """Declare a field of a group of columns, of this shape per series."""
    return field(metadata={"form": Form(stored, shape, fill, unit)})


def to_half(values: Single) -> Single:
    """Round to what a float16 can hold."""
    return np.minimum(np.maximum(values, -HALF_MAX), HALF_MAX).astype(np.float16).astype(np.float32)


def _in_memory(form: Form) -> Any:
    return {"half": np.float32, "nibble": np.uint8}.get(form.stored) or _STORED[form.stored]


@dataclass(slots=True)
class Columns:
    """The base of every group of columns."""

    @classmethod
    def forms(cls) -> dict[str, Form]:
        """The fields by name, in the order in which they are stored."""
        return {it.name: it.metadata["form"] for it in fields(cls)}

    @classmethod
    def empty(cls, count: int) -> Self:
        """Columns for `count` series of which nothing is known."""
        return cls(
            **{name: np.full((*form.shape, count), form.fill, _in_memory(form)) for name, form in cls.forms().items()}
        )

    def take(self, index: Index) -> Self:
        """A copy of these series' columns."""
        return type(self)(**{name: np.take(getattr(self, name), index, axis=-1) for name in self.forms()})

    def put(self, index: Index, other: Self) -> None:
        """Overwrite these series' columns by those of another group."""
        for name in self.forms():
            getattr(self, name)[..., index] = getattr(other, name)

    def rescale(self, index: Index, factor: Single) -> None:
        """Multiply whatever carries the series' unit. Exact if the factors are powers of two."""
        for name, form in self.forms().items():
            if form.unit:
                values = getattr(self, name)
                scaled = values[..., index] * factor**form.unit
                values[..., index] = to_half(scaled) if form.stored == "half" else scaled

    @classmethod
    def stored_bytes(cls) -> int:
        """Bytes per series in storage."""
        return sum(_bytes(form) for form in cls.forms().values())

    def pack(self) -> NDArray[np.uint8]:
        """The stored form, shape (series, stored_bytes)."""
        parts: list[NDArray[np.uint8]] = []
        for name, form in self.forms().items():
            values = np.moveaxis(getattr(self, name), -1, 0).reshape(getattr(self, name).shape[-1], -1)
            if form.stored == "nibble":
                parts.append(values[:, ::2] | (values[:, 1::2] << 4))
            else:
                parts.append(np.ascontiguousarray(values.astype(_little(form))).view(np.uint8))
        return np.concatenate(parts, axis=1)

    @classmethod
    def unpack(cls, stored: NDArray[np.uint8]) -> Self:
        """The columns of what `pack` gave."""
        count, at = stored.shape[0], 0
        made: dict[str, Any] = {}
        for name, form in cls.forms().items():
            part = np.ascontiguousarray(stored[:, at : at + _bytes(form)])
            at += _bytes(form)
            is_nibble = form.stored == "nibble"
            values = np.stack([part & 15, part >> 4], axis=-1) if is_nibble else part.view(_little(form))
            made[name] = np.ascontiguousarray(
                np.moveaxis(values.reshape(count, *form.shape), 0, -1).astype(_in_memory(form))
            )
        return cls(**made)


def _size(form: Form) -> int:
    return int(np.prod(form.shape, dtype=np.int64))


def _bytes(form: Form) -> int:
    return _size(form) // 2 if form.stored == "nibble" else _size(form) * np.dtype(_STORED[form.stored]).itemsize


def _little(form: Form) -> Any:
    return np.dtype(_STORED[form.stored]).newbyteorder("<")
