"""Where a person's decisions are handed in, beside the services that write to the ledger or without any.

A decision is left in the folder first, so that it is carried out even if the command that made it dies. Then
whoever holds the lane carries it out; where nobody does, the desk takes the lane for that moment.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from ..decisions import MAX_SUBJECTS, SENDING, Decision, Pause, Ruling, What, new_decision_id
from ..errors import LedgerError
from ..protocols import Alarm
from . import folder as files
from . import homes, rulings, schema, spool
from .lane import Lane
from .taking import HOME

WAIT_S = 15.0
"""A service looks for decisions with each of its rounds, every 10 seconds unless it was told otherwise."""
_POLL_S = 0.05


@dataclass(slots=True)
class Decided:
    """What became of what a person decided."""

    rulings: list[Ruling] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    """Subjects that the holder of their lane has not come to yet; it will."""

    @property
    def done(self) -> list[Ruling]:
        return [ruling for ruling in self.rulings if ruling.refused is None]

    @property
    def refused(self) -> list[Ruling]:
        return [ruling for ruling in self.rulings if ruling.refused is not None]


class Desk:
    """Hands decisions to a ledger's folder.

    Args:
        folder: Of the ledger.
        wait_s: How long to wait for a service that holds a lane.
        now: The clock, Unix seconds.
        sleep: Waits between two looks.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        wait_s: float = WAIT_S,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = Path(folder)
        self._wait_s = wait_s
        self._now = now
        self._sleep = sleep
        self._monotonic = monotonic

    def decide(
        self,
        what: What,
        subjects: Mapping[str, Sequence[str]],
        *,
        who: str,
        why: str,
        customer: str | None = None,
    ) -> Decided:
        """Hand in what was decided of events or records, which are named by the lane that they are in.

        Raises:
            LedgerError: The folder cannot be written, or a lane is a copy that no process has taken yet.
            ValueError: It is no decision that could be carried out.
        """
        for lane in subjects:
            self._refuse_copy(lane)
        made = [
            (lane, Decision(what, some, who, why, self._now(), new_decision_id(), customer))
            for lane, names in subjects.items()
            for some in _groups(names)
        ]
        return self._settle(made)

    def pause(self, *, who: str, why: str) -> Decided:
        """Let nothing be sent from any process, those to come included."""
        return self._switch("pause", who, why)

    def resume(self, *, who: str, why: str) -> Decided:
        """Lift a person's pause."""
        return self._switch("resume", who, why)

    def _switch(self, what: What, who: str, why: str) -> Decided:
        """The file that all processes look at is changed at once; the row that says who follows."""
        before = "paused" if spool.pause_of(self._folder) else "sending"
        now = self._now()
        decision = Decision(what, (SENDING,), who, why, now, new_decision_id(), before=before)
        lanes = files.lane_names(self._folder)
        made = [(self._free_or_first(lanes), decision)] if lanes else []
        for lane, each in made:
            spool.post(self._folder, lane, each)
        spool.set_pause(self._folder, Pause(who, why, now) if what == "pause" else None)
        return self._wait(made)

    def _free_or_first(self, lanes: Sequence[str]) -> str:
        """A lane that nobody holds spares the waiting."""
        originals = [name for name in lanes if not self._is_copy(name)]
        for name in originals:
            fd = files.lock(self._folder, name)
            if fd is not None:
                os.close(fd)
                return name
        return (originals or lanes)[0]

    def _refuse_copy(self, name: str) -> None:
        """What a copy holds is held back when a process takes it; before that its states are not its own."""
        if self._is_copy(name):
            raise LedgerError(
                f"lane {name} is a copied file or a restored backup, which no process has taken yet, and the "
                "original may bill what is in it. Start a service or `llm-metering deliver` on this ledger, "
                "which holds back what the lane has; then look again and decide"
            )

    def _is_copy(self, name: str) -> bool:
        """Whether nobody has taken this copy yet: who takes it notes its new home."""
        path = files.lane_path(self._folder, name)
        try:
            with closing(files.read_lane(path)) as db:
                row = db.execute("SELECT value FROM meta WHERE name = ?", (HOME,)).fetchone()
            noted = homes.from_json(row[0] if row else None)
            return noted is not None and homes.home_of(path, homes.this_machine()).is_copy_of(noted)
        except (OSError, sqlite3.Error):
            return False  # whoever opens it says what is wrong

    def _settle(self, made: Iterable[tuple[str, Decision]]) -> Decided:
        made = list(made)
        for lane, decision in made:
            spool.post(self._folder, lane, decision)
        return self._wait(made)

    def _wait(self, made: Iterable[tuple[str, Decision]]) -> Decided:
        decided, open_ = Decided(), list(made)
        deadline = self._monotonic() + self._wait_s
        while True:
            for lane in {lane for lane, _ in open_}:
                self._carry_out_if_free(lane)
            left = []
            for lane, decision in open_:
                found = self._answer(lane, decision)
                if found is None:
                    left.append((lane, decision))
                else:
                    decided.rulings += found
            open_ = left
            if not open_ or self._monotonic() >= deadline:
                break
            self._sleep(_POLL_S)
        decided.waiting = [subject for _, decision in open_ for subject in decision.subjects]
        return decided

    def _answer(self, name: str, decision: Decision) -> list[Ruling] | None:
        try:
            with closing(files.read_lane(files.lane_path(self._folder, name))) as db:
                return rulings.answer(db, decision)
        except sqlite3.Error as exc:
            raise LedgerError(f"lane {name} cannot be read: {exc}") from exc

    def _carry_out_if_free(self, name: str) -> None:
        """Nobody holds it: take it, carry out what waits for it, let it go."""
        fd = None if self._is_copy(name) else files.lock(self._folder, name)
        if fd is None:
            return
        try:
            with closing(files.open_lane(files.lane_path(self._folder, name), sqlite3.connect)) as db:
                if schema.version_of(db) != schema.VERSION:
                    raise LedgerError(f"another version of llm_metering wrote lane {name}; use that one")
                lane = Lane(name, db, new_id=new_decision_id, random=random.random)
                alarms: list[Alarm] = []
                spool.take_up(self._folder, {name: lane}.get, now=self._now(), alarms=alarms)
        except sqlite3.Error as exc:
            raise LedgerError(f"lane {name} cannot be opened: {exc}") from exc
        finally:
            os.close(fd)
        if alarms:
            raise LedgerError(alarms[0].message)


def _groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    unique = tuple(dict.fromkeys(names))
    return [unique[i : i + MAX_SUBJECTS] for i in range(0, len(unique), MAX_SUBJECTS)]
