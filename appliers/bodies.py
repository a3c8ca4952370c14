"""What a record says, and whether it is of the generation that its partition is in.

Invariant: a dead relay's late records of an older generation are passed over; one of a newer generation whose first copy
was not read is an error, since its rows would come to replicas that lack the rest.
"""

from __future__ import annotations

from collections.abc import Mapping

from appliers.state import PartitionState
from fanout import envelope
from fanout.envelope import Changes, Close, Envelope
from fanout.errors import EnvelopeUnknown, LogTrimmed
from fanout.log.interface import Record


class Bodies:
    """`partitions`: what is read now, which the owner changes."""

    def __init__(self, partitions: Mapping[int, PartitionState]) -> None:
        self._partitions = partitions
        self._decoded: tuple[bytes, Envelope] = (b"", Close(0, 0, 0, 0))

    def decode(self, value: bytes) -> Envelope:
        """The body of a record for everybody."""
        # a broadcast comes once for each partition, with the same bytes
        if value != self._decoded[0]:
            self._decoded = (value, envelope.decode(value))
        return self._decoded[1]

    def changes(self, record: Record) -> Changes | None:
        """A record's changes; None when they are of a generation that is over. Raises EnvelopeUnknown, LogTrimmed."""
        body = self.decode(record.value) if record.key is None else envelope.decode(record.value)
        if not isinstance(body, Changes):
            raise EnvelopeUnknown("A tenant's record that holds no changes", offset=record.offset)
        return body if self.is_current(body.generation, record) else None

    def is_current(self, generation: int, record: Record) -> bool:
        """Whether a record belongs to the generation that this partition is in: a dead relay's late ones may not."""
        present = self._partitions[record.partition].generation
        if generation > present:
            raise LogTrimmed(
                "The log goes on from a first copy that is not in it any more",
                partition=record.partition,
                offset=record.offset,
                generation=generation,
            )
        return generation == present
