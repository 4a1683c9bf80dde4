"""What a host's lane offers to the ledger that a fleet shares, and what that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .._values import dataclass
from .lines import LineKey
from .rows import Row


@dataclass(frozen=True, slots=True)
class Offer:
    """A group of records of one lane, and the streams that are under way in it."""

    lane: str
    number: int
    """Of the last group of this lane that was taken, as the lane has it; 0 for none."""
    mark: str
    """The ledger's latest mark that the lane knows of, "" for none."""
    records: Sequence[Row]
    """Columns of `rows.RECORD`."""
    progress: Sequence[Row]
    """The same, of streams under way that changed."""
    streams: Sequence[str] | None
    """The ids of all streams under way; None where some of them may have ended in records to come."""
    keys: Mapping[int, LineKey]
    """What the numbers in the records' lines stand for."""
    last: int = 0
    """The number of its last record, for the lane alone."""
    was_offered: bool = False
    """Whether the ledger may have taken anything of this lane already, though it never said so."""
    again: bool = False
    """Whether the ledger may have had these records before it went back."""
    retold: Sequence[str] = ()
    """Those of its records and streams of which the ledger may have heard as streams before it went back."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The ledger has committed the group."""

    number: int
    mark: str
    new: int
    """How many of its records it did not have."""


@dataclass(frozen=True, slots=True)
class OfferAgain:
    """The ledger took nothing: it went back, or does not know how far this lane has come. All that the lane
    still holds is to be offered again."""

    number: int
    mark: str
    why: str


Answer = Taken | OfferAgain
