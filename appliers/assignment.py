"""Which partitions an applier owns when no group decides it (`appliers.ownership`): a fixed share, `number/count`.

Invariant: the shares of one count are disjoint and cover every partition; `appliers.state` locks each partition as well,
so that a share started twice is an error and not two writers.
"""

from __future__ import annotations

import msgspec


class Share(msgspec.Struct, frozen=True):
    """The `number`th of `count` equal shares, from 1."""

    number: int = 1
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ValueError("a share is written number/count, from 1/count to count/count")

    @classmethod
    def parse(cls, text: str) -> Share:
        """`"1/2"` -> the first of two. Raises ValueError."""
        number, slash, count = text.partition("/")
        if not slash or not number.isdecimal() or not count.isdecimal():
            raise ValueError("a share is written number/count, such as 1/2")
        return cls(int(number), int(count))

    def partitions(self, of: int) -> list[int]:
        """This share's partitions of a log that has `of`."""
        return list(range(self.number - 1, of, self.count))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"
