"""A wall clock that is set while nobody looks: no process runs, the machine sleeps, or it starts anew."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from llm_metering.ledger import MemoryLedger, SqliteLedger
from llm_metering.ledger.clocks import Boot, Lag, Moment, from_text, look, noted, this_boot, to_text
from llm_metering.protocols import Outcome
from tests.ledger.conftest import BUCKET, T0, conserved, deliver, entry, progress, totals

pytestmark = pytest.mark.boot_clock

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass
class Machine:
    """Its two clocks, and the ledgers on it."""

    folder: Path
    kind: str = "sqlite"
    wall: float = T0
    run: str = "first"
    up_s: float = 1000.0
    has_boot_clock: bool = True
    ledger: Any = None

    def boot(self) -> Boot | None:
        return Boot(self.run, self.up_s) if self.has_boot_clock else None

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.up_s += seconds

    def set_back(self, by_s: float) -> None:
        self.wall -= by_s

    def reboot(self) -> None:
        self.run, self.up_s = f"after {self.run}", 5.0

    def start(self) -> Any:
        """A process begins, after the one before, if there was one, is gone."""
        if self.kind == "sqlite" or self.ledger is None:
            self.ledger = self.new_ledger()
        self.ledger.open(now=self.wall)
        return self.ledger

    def begin_anew(self, *, has_boot_clock: bool) -> None:
        """With nothing noted, as a machine that always had such a clock, or never."""
        self.has_boot_clock = has_boot_clock
        self.ledger.close()
        self.ledger = None
        self.start()

    def new_ledger(self) -> Any:
        if self.kind == "memory":
            return MemoryLedger(random=lambda: 0.5, boot=self.boot)
        return SqliteLedger(self.folder, random=lambda: 0.5, adopt_after_s=0, boot=self.boot)

    def doubt(self) -> None:
        """A meter event that Stripe may have."""
        self.ledger.commit([entry("a")], [], now=self.wall)
        self.pass_(BUCKET)
        self.ledger.freeze(now=self.wall, bucket_s=BUCKET)
        assert deliver(self.ledger, now=self.wall, outcome=Outcome("ambiguous"))

    def is_sent_again(self) -> bool:
        return bool(self.ledger.claim(now=self.wall, limit=1))

    def alarms(self) -> list[Any]:
        return [a for a in self.ledger.take_alarms() if a.name == "ledger.clock_went_back"]

    def in_doubt(self) -> int:
        self.ledger.maintain(now=self.wall)
        assert conserved(self.ledger)
        return int(totals(self.ledger)["in_doubt"])


@pytest.fixture(params=["memory", "sqlite"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "ledger", request.param)
    made.start()
    yield made
    made.ledger.close()


@pytest.mark.parametrize("back", [HOUR, 10 * HOUR, 25 * HOUR])
def test_a_clock_set_back_while_no_process_ran_does_not_extend_the_22_hours(machine, back):
    machine.doubt()
    machine.pass_(HOUR)
    machine.ledger.maintain(now=machine.wall)
    machine.ledger.close()
    machine.pass_(20 * HOUR)
    machine.set_back(back)
    machine.start()
    machine.pass_(2 * HOUR)  # twenty-three hours in truth
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10
    (alarm,) = machine.alarms()
    assert alarm.data["by_s"] == pytest.approx(back, abs=1)


def test_what_is_younger_in_truth_is_sent_again_all_the_same(machine):
    machine.doubt()
    machine.ledger.close()
    machine.pass_(20 * HOUR)
    machine.set_back(10 * HOUR)
    machine.start()
    assert machine.is_sent_again()
    assert machine.in_doubt() == 0


def test_what_was_being_sent_as_the_process_ended_keeps_its_age_too(machine):
    machine.ledger.commit([entry("a")], [], now=machine.wall)
    machine.pass_(BUCKET)
    machine.ledger.freeze(now=machine.wall, bucket_s=BUCKET)
    assert machine.ledger.claim(now=machine.wall, limit=1)
    machine.ledger.close()
    machine.pass_(23 * HOUR)
    machine.set_back(12 * HOUR)
    machine.start()
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10


def test_a_clock_set_back_between_two_turns_of_a_process_that_hung_does_not_either(machine):
    machine.doubt()
    machine.pass_(23 * HOUR)  # stopped, or on a machine that slept
    machine.set_back(12 * HOUR)
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10


def test_no_use_is_left_ahead_of_a_clock_that_went_back_while_nobody_looked(machine):
    machine.ledger.commit([entry("a")], [progress("s")], now=machine.wall)
    machine.ledger.close()
    machine.pass_(HOUR)
    machine.set_back(3 * HOUR)
    machine.start()
    machine.ledger.freeze(now=machine.wall, bucket_s=BUCKET, everything=True)
    claims = machine.ledger.claim(now=machine.wall, limit=5)
    assert claims
    assert all(claim.event.timestamp <= machine.wall for claim in claims)


def test_a_clock_that_is_put_right_by_going_ahead_is_no_alarm_and_makes_no_doubt_younger(machine):
    machine.doubt()
    machine.ledger.close()
    machine.pass_(HOUR)
    machine.set_back(-5 * HOUR)
    machine.start()
    assert machine.is_sent_again()
    assert machine.alarms() == []


def test_a_machine_that_slept_is_no_alarm(machine):
    machine.doubt()
    machine.pass_(3 * DAY)
    assert not machine.is_sent_again()
    assert machine.alarms() == []


def test_after_a_reboot_a_clock_that_went_on_is_believed(machine):
    machine.doubt()
    machine.ledger.close()
    machine.pass_(HOUR)
    machine.reboot()
    machine.start()
    assert machine.is_sent_again()
    assert machine.alarms() == []


@pytest.mark.parametrize("has_boot_clock", [True, False])
def test_after_a_reboot_a_clock_behind_the_last_that_was_noted_leaves_every_doubt_to_a_person(
    machine, has_boot_clock
):
    machine.begin_anew(has_boot_clock=has_boot_clock)
    machine.doubt()
    machine.ledger.close()
    machine.pass_(HOUR)
    machine.reboot()
    machine.set_back(HOUR + 60)
    machine.start()
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10
    (alarm,) = machine.alarms()
    assert "is not known" in alarm.message
    assert alarm.data["by_s"] == pytest.approx(60, abs=1)


def test_that_holds_for_a_doubt_that_began_within_the_grain_of_the_last_note(machine):
    machine.ledger.commit([entry("a")], [], now=machine.wall)
    machine.pass_(BUCKET)
    machine.ledger.freeze(now=machine.wall, bucket_s=BUCKET)
    machine.ledger.maintain(now=machine.wall)
    machine.pass_(4)
    assert deliver(machine.ledger, now=machine.wall, outcome=Outcome("ambiguous"))
    machine.ledger.close()
    machine.reboot()
    machine.set_back(14)
    machine.start()
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10


def test_it_makes_no_attempt_older_so_that_sums_that_lag_are_not_believed_early(machine):
    """The oracle believes that an event did not arrive hours after its last attempt, and sends it anew."""
    machine.doubt()
    machine.ledger.close()
    machine.pass_(60)
    machine.reboot()
    machine.set_back(300)
    machine.start()
    assert machine.in_doubt() == 10
    assert machine.ledger.unsettled(before=machine.wall - 600) == []
    (row,) = machine.ledger.unsettled(before=machine.wall + 600)
    assert machine.wall - 600 < row.attempted_at <= machine.wall


def test_usage_goes_on_after_such_a_reboot(machine):
    machine.doubt()
    machine.ledger.close()
    machine.reboot()
    machine.set_back(HOUR)
    machine.start()
    machine.ledger.commit([entry("b", customer="cus_2", used_at=machine.wall)], [], now=machine.wall)
    machine.ledger.freeze(now=machine.wall, bucket_s=BUCKET, everything=True)
    assert [c.event.customer for c in deliver(machine.ledger, now=machine.wall)] == ["cus_2"]
    assert totals(machine.ledger)["accepted"] == 10


def test_in_a_process_that_runs_without_a_boot_clock_what_went_back_is_moved_along(machine):
    machine.begin_anew(has_boot_clock=False)
    machine.doubt()
    machine.set_back(HOUR)
    assert machine.in_doubt() == 0
    machine.pass_(21 * HOUR + 60)
    assert machine.in_doubt() == 0
    machine.pass_(HOUR)
    assert machine.in_doubt() == 10


# ---- Stripe's answers tell the time


@pytest.mark.parametrize("has_boot_clock", [True, False])
def test_after_a_restart_of_the_machine_nothing_is_sent_again_before_stripe_tells_the_time(
    machine, has_boot_clock
):
    machine.begin_anew(has_boot_clock=has_boot_clock)
    machine.doubt()
    machine.ledger.close()
    machine.pass_(23 * HOUR)
    machine.reboot()
    machine.set_back(15 * HOUR)  # less than the machine was down: it shows a later time than the last noted
    machine.start()
    assert machine.ledger.hear_time(None, now=machine.wall)
    assert not machine.is_sent_again()
    assert not machine.ledger.hear_time(15 * HOUR, now=machine.wall)
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10
    (alarm,) = machine.alarms()
    assert alarm.data["by_s"] == pytest.approx(15 * HOUR)


def test_what_is_young_enough_by_stripes_time_is_sent_again_then(machine):
    machine.doubt()
    machine.ledger.close()
    machine.pass_(15 * HOUR)
    machine.reboot()
    machine.set_back(10 * HOUR)
    machine.start()
    assert machine.ledger.hear_time(None, now=machine.wall)
    assert not machine.is_sent_again()
    assert not machine.ledger.hear_time(10 * HOUR, now=machine.wall)
    assert machine.is_sent_again()
    assert machine.in_doubt() == 0


def test_a_restart_of_the_process_alone_waits_for_nothing(machine):
    machine.doubt()
    machine.ledger.close()
    machine.pass_(15 * HOUR)
    machine.start()
    assert not machine.ledger.hear_time(None, now=machine.wall)
    assert machine.is_sent_again()


def test_a_restart_of_the_machine_without_doubts_waits_for_nothing(machine):
    machine.ledger.close()
    machine.pass_(HOUR)
    machine.reboot()
    machine.start()
    assert not machine.ledger.hear_time(None, now=machine.wall)


def test_what_stripe_cannot_have_is_sent_meanwhile(machine):
    machine.doubt()
    machine.ledger.commit([entry("b")], [], now=machine.wall)
    machine.ledger.freeze(now=machine.wall, bucket_s=BUCKET, everything=True)
    machine.ledger.close()
    machine.pass_(HOUR)
    machine.reboot()
    machine.start()
    assert machine.ledger.hear_time(None, now=machine.wall)
    (claim,) = machine.ledger.claim(now=machine.wall, limit=5)
    assert claim.attempt == 1


def test_a_first_attempt_that_is_under_way_as_the_time_is_told_is_no_doubt_by_that(machine):
    machine.ledger.commit([entry("a")], [], now=machine.wall)
    machine.ledger.freeze(now=machine.wall, bucket_s=BUCKET, everything=True)
    (claim,) = machine.ledger.claim(now=machine.wall, limit=1)
    machine.ledger.hear_time(25 * HOUR, now=machine.wall)
    assert machine.alarms() == []
    moved = machine.ledger.finish(claim, Outcome("not_sent"), now=machine.wall)
    assert moved.after == "PENDING"


def test_who_comes_after_one_that_was_not_told_waits_too(machine):
    """By its own notes its clock went on: those are of after the restart."""
    machine.doubt()
    machine.ledger.close()
    machine.pass_(23 * HOUR)
    machine.reboot()
    machine.set_back(15 * HOUR)
    for _ in range(2):
        machine.start()
        machine.pass_(60)
        machine.ledger.maintain(now=machine.wall)
        machine.ledger.close()
    machine.start()
    assert machine.ledger.hear_time(None, now=machine.wall)
    assert not machine.is_sent_again()
    machine.ledger.hear_time(15 * HOUR, now=machine.wall)
    assert machine.in_doubt() == 10


def test_a_second_quick_restart_without_a_boot_clock_waits_as_well(machine):
    """The clock shows the very time that was noted last, though a day has passed."""
    machine.begin_anew(has_boot_clock=False)
    machine.doubt()
    machine.ledger.maintain(now=machine.wall)
    machine.ledger.close()
    machine.pass_(23 * HOUR)
    machine.set_back(23 * HOUR - 1)
    machine.start()
    assert machine.ledger.hear_time(None, now=machine.wall)
    assert not machine.is_sent_again()


@pytest.mark.parametrize("machine", ["sqlite"], indirect=True)
def test_a_lane_that_is_taken_later_waits_for_an_answer_of_its_own(machine):
    machine.doubt()
    doubtful = machine.ledger
    other = machine.new_ledger()
    other.open(now=machine.wall)
    later = other.lane
    other.close()
    doubtful.close()
    machine.pass_(23 * HOUR)
    machine.reboot()
    machine.set_back(15 * HOUR)
    os.utime(machine.folder / f"lane-{later}.db", (2e9, 2e9))  # the one that was used last is taken first
    patient = SqliteLedger(machine.folder, random=lambda: 0.5, adopt_after_s=5, boot=machine.boot)
    patient.open(now=machine.wall)
    assert patient.lane == later
    assert not patient.hear_time(15 * HOUR, now=machine.wall)
    for _ in range(3):
        machine.pass_(10)
        patient.maintain(now=machine.wall)
    assert patient.hear_time(None, now=machine.wall)
    assert patient.claim(now=machine.wall, limit=1) == []
    assert not patient.hear_time(15 * HOUR, now=machine.wall)
    patient.maintain(now=machine.wall)
    assert totals(patient)["in_doubt"] == 10
    patient.close()


# ---- several lanes

ON_DISK = pytest.mark.parametrize("machine", ["sqlite"], indirect=True)


@ON_DISK
def test_the_latest_time_of_any_lane_tells_that_the_clock_went_back(machine):
    """The lane with the doubt was last used long before the machine went down, others until then."""
    machine.doubt()
    other = machine.new_ledger()
    other.open(now=machine.wall)
    assert other.lane != machine.ledger.lane
    doubtful = machine.ledger.lane
    machine.ledger.close()
    machine.pass_(5 * HOUR)
    other.commit([entry("b", customer="cus_2")], [], now=machine.wall)  # as one that only records
    other.close()
    machine.pass_(20 * HOUR)
    machine.reboot()
    machine.set_back(23 * HOUR)  # two hours after the doubt's lane was last used, as it seems
    machine.start()
    assert machine.ledger.history(machine.ledger.events()[0].event.identifier).row.lane == doubtful
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10


@ON_DISK
def test_it_does_so_even_after_a_process_has_gone_on_in_that_lane(machine):
    machine.doubt()
    other = machine.new_ledger()
    other.open(now=machine.wall)
    machine.ledger.close()
    machine.pass_(5 * HOUR)
    other.maintain(now=machine.wall)
    later = other.lane
    other.close()
    machine.pass_(20 * HOUR)
    machine.reboot()
    machine.set_back(23 * HOUR)
    os.utime(machine.folder / f"lane-{later}.db", (2e9, 2e9))  # the one that was used last is taken first
    patient = SqliteLedger(machine.folder, random=lambda: 0.5, adopt_after_s=5, boot=machine.boot)
    patient.open(now=machine.wall)
    assert patient.lane == later  # its note is on the clock in doubt from here on
    for _ in range(3):
        machine.pass_(10)
        patient.maintain(now=machine.wall)
    assert patient.claim(now=machine.wall, limit=1) == []
    assert totals(patient)["in_doubt"] == 10
    patient.close()


@ON_DISK
def test_it_does_so_hours_after_another_process_has_gone_on(machine):
    """Who only records begins first; who delivers comes when the clock shows a later time again."""
    machine.doubt()
    other = machine.new_ledger()
    other.open(now=machine.wall)
    later = other.lane
    other.close()
    machine.ledger.close()
    machine.pass_(20 * HOUR)
    machine.reboot()
    machine.set_back(21 * HOUR)
    os.utime(machine.folder / f"lane-{later}.db", (2e9, 2e9))
    service = SqliteLedger(machine.folder, random=lambda: 0.5, adopt_after_s=1e9, boot=machine.boot)
    service.open(now=machine.wall)
    assert service.lane == later
    machine.pass_(3 * HOUR)  # later than anything that was noted
    machine.start()
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10
    service.close()


@ON_DISK
def test_a_note_to_which_an_older_version_added_is_not_believed(machine):
    """It wrote the wall clock's time alone: what the other clock said then is not known."""
    machine.doubt()
    path = machine.folder / f"lane-{machine.ledger.lane}.db"
    machine.ledger.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE meta SET value = ? WHERE name = 'clock'", (repr(machine.wall + HOUR),))
    machine.pass_(HOUR)
    machine.set_back(60)
    machine.start()
    assert not machine.is_sent_again()
    assert machine.in_doubt() == 10


# ---- the clocks themselves


def moment(wall: float, at: float | None, run: str = "run") -> Moment:
    return Moment(wall, None if at is None else Boot(run, at))


def test_many_small_lags_add_up():
    last: Moment | None = moment(0.0, 0.0)
    lags, wall, up = [], 0.0, 0.0
    for _ in range(10):  # a clock that runs a fifth too slow
        wall, up = wall + 8.0, up + 10.0
        lag, now = look(last, moment(wall, up))
        last = now or last
        lags.append(lag.s)
    assert sum(lags) == pytest.approx(20.0, abs=5.0)


def test_a_clock_that_ticks_as_time_passes_is_noted_every_few_seconds_only():
    first = moment(100.0, 10.0)
    assert look(first, moment(103.0, 13.0)) == (Lag(0.0), None)
    later = moment(110.0, 20.0)
    assert look(first, later) == (Lag(0.0), later)


def test_a_clock_that_stands_still_lags():
    lag, _ = look(moment(100.0, 10.0), moment(100.0, 40.0))
    assert lag.s == 30.0


def test_a_boot_clock_that_went_back_says_nothing():
    """As in a container that got a clock of its own."""
    lag, _ = look(moment(100.0, 1000.0), moment(90.0, 10.0), latest=0.0)
    assert not lag.is_known
    assert lag.s == 10.0
    assert lag.of_doubts_s >= 22 * HOUR + 10.0


def test_a_moment_is_read_as_it_was_written():
    for each in (moment(1.5, 2.5, "a/b"), moment(1e9 + 1 / 3, None)):
        assert from_text(to_text(each)) == each
        assert noted(repr(each.wall), to_text(each)) == each
    assert from_text(None) is None
    assert from_text("yesterday x 1.0") is None
    assert from_text("5.0 run") == Moment(5.0, None)
    assert noted(None, to_text(moment(1.0, 2.0))) is None
    assert noted("2.0", to_text(moment(1.0, 2.0))) == Moment(2.0, None)


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no boot clock")
def test_this_machine_has_such_a_clock():
    first, second = this_boot(), this_boot()
    if first is None:
        pytest.skip("no boot id here")
    assert second is not None
    assert first.run == second.run
    assert " " not in first.run
    assert second.at >= first.at


def test_where_there_is_none_it_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_metering.ledger import clocks

    this_run: Callable[[], str | None] = clocks._this_run.__wrapped__
    monkeypatch.setattr(clocks, "_BOOT_ID", Path("/nowhere/boot_id"))
    assert this_run() is None
    monkeypatch.setattr(clocks, "_this_run", lambda: None)
    assert this_boot() is None
