"""Take each protection out of a copy of the package, and prove that a test turns red: `make mutants`.

    python tools/mutants.py                 # all of them
    python tools/mutants.py --only fence    # those whose name holds this word
    python tools/mutants.py --quick         # without the simulator

A mutant is a piece of source text and what stands in its place. Its tests run against the copy; they must
pass on the copy as it is, and at least one of them must fail on the mutant. For the rules of delivery the
simulator has to notice, too. Exit 1 if one survives, or if its text is not in the source any more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 300
SIMULATOR = "simulation/test_lives.py::test_whatever_happens_the_promises_hold"

_REQUESTS = "capture/server/test_middleware_requests.py"
_ENDINGS = "capture/server/test_middleware_endings.py"
_SERVED = "capture/server/test_middleware_served.py"
_DISGUISES = "capture/server/test_middleware_disguises.py"
_BACKGROUND = "capture/server/test_middleware_background.py"
_STREAMS = "capture/test_clients_streams.py"
_LONG = "capture/server/test_middleware_long.py"
_BATCHES = "providers/test_batches.py"
_UNWATCHED = "ledger/test_unwatched_clocks.py"
_FLEET = "ledger/postgres"
_FAULTS = "ledger/postgres/test_faults.py"
_PODS = "ledger/postgres/test_pods.py"
_BACK = "ledger/postgres/test_going_back.py"


@dataclass(frozen=True)
class Mutant:
    """A protection, how it is taken out, and the tests that must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    simulated: bool = False
    """Whether random lives must notice as well."""


MUTANTS = (
    Mutant(
        "an adapter hears at once: a long answer that it waits for is decoded where it ends",
        "capture/answers.py",
        "tally.is_slow and not self._scope.is_listened_to",
        "tally.is_slow",
        (f"{_LONG}::test_an_adapter_that_listens_hears_of_it_before_the_answer_is_over",),
    ),
    Mutant(
        "a batch's line without an id is another one in another file",
        "providers/batches.py",
        'return f"{number}-{hashlib.sha256(of + content.strip()).hexdigest()[:32]}"',
        'return f"{number}"',
        (f"{_BATCHES}::test_a_line_without_an_id_is_another_one_in_another_file_and_the_same_in_the_same",),
    ),
    Mutant(
        "a layout of an SDK's object is known by the type of each value, too",
        "providers/objects.py",
        "*names, *map(type, values)",
        "*names",
        ("providers/test_objects.py::test_a_known_layout_is_read_as_it_is_name_by_name",),
    ),
    Mutant(
        "freeze before send: the identifier is committed first",
        "ledger/attempts.py",
        "claims.append(_claim(event, ",
        "import os\n            from dataclasses import replace\n"
        "            claims.append(Claim(replace(event, identifier=os.urandom(16).hex()), ",
        ("ledger/test_contract.py::test_the_same_bytes_are_sent_again",),
        simulated=True,
    ),
    Mutant(
        "frozen time and body: a retry is the same bytes",
        "ledger/attempts.py",
        "claims.append(_claim(event, ",
        "from dataclasses import replace\n"
        "            claims.append(Claim(replace(event, timestamp=int(now)), ",
        ("ledger/test_contract.py::test_the_same_bytes_are_sent_again",),
        simulated=True,
    ),
    Mutant(
        "attempt before send: the intent is committed first",
        "ledger/attempts.py",
        "        self._write(alike.values())\n        return claims",
        "        return claims",
        ("ledger/test_contract.py::test_a_claim_is_on_record_before_anything_is_sent",),
        simulated=True,
    ),
    Mutant(
        "fence: an old lease changes nothing",
        "ledger/attempts.py",
        'if known is None or known[2] != claim.fence or known[1].state != "SENDING":',
        'if known is None or known[1].state != "SENDING":',
        ("ledger/test_contract.py::test_an_old_fence_changes_nothing",),
    ),
    Mutant(
        "what is kept in memory is held against the file",
        "ledger/attempts.py",
        "if done.rowcount != len(set(some)):",
        "if False:",
        (
            "ledger/test_sqlite.py::test_what_was_read_ahead_is_held_against_the_file_before_it_is_sent",
            "ledger/test_sqlite.py::test_an_answer_is_held_against_the_file_and_not_against_what_is_remembered",
        ),
    ),
    Mutant(
        "lane lock: one writer a file",
        "ledger/folder.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "pass",
        (
            "ledger/test_sqlite.py::test_a_lane_of_a_live_process_is_not_taken",
            "ledger/test_sqlite.py::test_two_ledgers_on_a_folder_write_to_lanes_of_their_own",
        ),
    ),
    Mutant(
        "22 hours: no doubt is sent again after that",
        "ledger/states.py",
        "return standing.first_ambiguous_at is not None and now - standing.first_ambiguous_at >= HORIZON_S",
        "return False",
        (
            "ledger/test_contract.py::test_twenty_two_hours_after_the_first_doubt_nothing_is_resent",
            "test_flusher.py::test_thirty_hours_without_answers_leave_a_few_in_doubt_that_are_never_sent_again",
        ),
        simulated=True,
    ),
    Mutant(
        "a duplicate on a retry is delivered",
        "ledger/states.py",
        "    if standing.attempts > 1:\n",
        "    if False:\n",
        (
            "ledger/test_contract.py::test_a_duplicate_after_an_earlier_attempt_is_delivered",
            "test_flusher.py::test_a_lost_answer_is_settled_by_the_duplicate_that_follows",
        ),
        simulated=True,
    ),
    Mutant(
        "a duplicate on the first attempt is no success",
        "ledger/states.py",
        "    if standing.attempts > 1:\n",
        "    if True:\n",
        (
            "ledger/test_contract.py::test_a_duplicate_on_the_first_attempt_is_in_doubt_with_an_alarm",
            "test_flusher.py::test_a_duplicate_on_the_first_attempt_is_no_success",
        ),
    ),
    Mutant(
        "a later refusal does not clear a doubt",
        "ledger/states.py",
        'waiting: State = "PENDING" if standing.first_ambiguous_at is None else "AMBIGUOUS"',
        'waiting: State = "PENDING"',
        ("ledger/test_contract.py::test_a_refusal_does_not_clear_an_older_doubt",),
        simulated=True,
    ),
    Mutant(
        "bad data after a doubt is no dead letter",
        "ledger/states.py",
        "    if standing.first_ambiguous_at is not None:\n        # It will never pass again",
        "    if False:\n        # It will never pass again",
        ("ledger/test_states.py::test_every_outcome_leads_where_the_design_says",),
        simulated=True,
    ),
    Mutant(
        "a clock that goes back makes no doubt younger",
        "ledger/lane.py",
        "                if lag:\n",
        "                if False:\n",
        ("ledger/test_contract.py::test_a_clock_set_back_two_days_does_not_extend_the_22_hours",),
    ),
    Mutant(
        "a clock set back while no process ran makes no doubt younger",
        "ledger/clocks.py",
        "        return Lag(passed + back)\n",
        "        return Lag(back)\n",
        (
            f"{_UNWATCHED}::test_a_clock_set_back_while_no_process_ran_does_not_extend_the_22_hours",
            f"{_UNWATCHED}::test_a_clock_set_back_between_two_turns_of_a_process_that_hung_does_not_either",
        ),
    ),
    Mutant(
        "a clock that went back during a reboot is not believed",
        "ledger/clocks.py",
        "    if latest is None:\n        return Lag(back)\n",
        "    if True:\n        return Lag(back)\n",
        (
            f"{_UNWATCHED}::test_after_a_reboot_a_clock_behind_the_last_that_was_noted_leaves_every_doubt_to_a_person",
        ),
    ),
    Mutant(
        "nor by who comes later",
        "ledger/lane.py",
        "found.append(clocks.brought_up(earlier, boot))",
        "pass",
        (
            f"{_UNWATCHED}::test_it_does_so_even_after_a_process_has_gone_on_in_that_lane",
            f"{_UNWATCHED}::test_it_does_so_hours_after_another_process_has_gone_on",
        ),
    ),
    Mutant(
        "a machine that was started anew sends nothing again before Stripe tells the time",
        "ledger/lane.py",
        "        self.attempts.awaits_time = self._is_untold\n",
        "",
        (
            f"{_UNWATCHED}::test_after_a_restart_of_the_machine_nothing_is_sent_again_before_stripe_tells_the_time",
        ),
    ),
    Mutant(
        "nor does who comes after one that was not told",
        "ledger/lane.py",
        'self.put_meta(_UNTOLD, "yes")',
        "pass",
        (f"{_UNWATCHED}::test_who_comes_after_one_that_was_not_told_waits_too",),
    ),
    Mutant(
        "a clock that fell behind Stripe's makes no doubt younger",
        "ledger/lane.py",
        "fell_s > 0 and self.attempts.make_older(fell_s)",
        "False",
        (
            f"{_UNWATCHED}::test_after_a_restart_of_the_machine_nothing_is_sent_again_before_stripe_tells_the_time",
        ),
    ),
    Mutant(
        "fleet: a new worker sends nothing again before Stripe tells the time",
        "ledger/postgres/ledger.py",
        "awaits_time=self._awaits_time",
        "awaits_time=False",
        (f"{_FLEET}/test_workers.py::test_a_new_worker_sends_nothing_again_before_stripe_has_told_the_time",),
    ),
    Mutant(
        "a proxy's page does not tell Stripe's time",
        "senders/server_clock.py",
        "if not found or not _REQUEST.search(head):",
        "if not found:",
        ("senders/test_server_clock.py::test_neither_does_an_answer_without_one_or_one_that_is_not_stripes",),
    ),
    Mutant(
        "a crash leaves a doubt",
        "ledger/lane.py",
        "changed = self.attempts.crash_all(now)",
        "changed: list[Transition] = []",
        ("ledger/test_contract.py::test_a_crash_while_sending_is_told_by_maintain",),
    ),
    Mutant(
        "one call at a time for a customer and meter",
        "ledger/attempts.py",
        "if pair not in busy and ",
        "if ",
        ("ledger/test_contract.py::test_one_attempt_at_a_time_for_a_customer_and_meter",),
        simulated=True,
    ),
    Mutant(
        "breaker: the first doubt stops new sends",
        "senders/pacing.py",
        '        if outcome.kind == "ambiguous":\n            self.trouble(now=now)\n        elif',
        '        if outcome.kind == "ambiguous":\n            pass\n        elif',
        (
            "senders/test_pacing.py::test_one_ambiguous_outcome_opens_it",
            "test_flusher.py::test_the_first_ambiguous_outcome_stops_new_sends",
        ),
        simulated=True,
    ),
    Mutant(
        "a refused key pauses",
        "delivery.py",
        '        if outcome.kind == "refused_config":\n'
        "            self._refused(_said(outcome), by_event=True)\n        elif",
        "        if False:\n            pass\n        elif",
        (
            "test_flusher.py::test_a_bad_key_consumes_nothing_raises_one_alarm_and_resumes_by_itself",
            "test_flusher.py::test_a_key_that_may_look_but_not_send_is_one_alarm_and_one_try_now_and_then",
        ),
    ),
    Mutant(
        "a ledger belongs to one account",
        "ledger/folder.py",
        "    if bound != account:\n",
        "    if False:\n",
        ("ledger/test_contract.py::test_a_ledger_is_bound_to_one_account_for_good",),
    ),
    Mutant(
        "an id is recorded once",
        "ledger/lane.py",
        'head, tail = f"INSERT INTO usage ({rows.RECORD})", "ON CONFLICT (id) DO NOTHING"',
        'head, tail = f"INSERT OR REPLACE INTO usage ({rows.RECORD})", ""',
        (
            "ledger/test_contract.py::test_a_second_record_of_an_id_changes_nothing",
            "ledger/test_contract.py::test_recording_an_id_twice_records_it_once",
        ),
    ),
    Mutant(
        "lanes of dead processes are adopted",
        "ledger/sqlite.py",
        "        self._lanes.adopt(now=now)\n",
        "",
        ("ledger/test_sqlite.py::test_a_free_lane_is_adopted_after_a_wait_that_lets_workers_start",),
    ),
    Mutant(
        "commits reach the disk",
        "ledger/folder.py",
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = OFF",
        ("ledger/test_sqlite.py::test_the_database_is_as_durable_as_promised",),
    ),
    Mutant(
        "the last message waits for the disk",
        "capture/middleware.py",
        "await self._before_last(request)",
        "pass",
        (
            f"{_ENDINGS}::test_the_last_message_waits_until_usage_is_on_disk",
            f"{_ENDINGS}::test_usage_that_waited_for_its_customer_is_on_disk_before_the_end_too",
        ),
    ),
    Mutant(
        "one answer counts once, however many saw it",
        "capture/context.py",
        "            return seen[surface] > most\n",
        "            return True\n",
        (
            "capture/server/test_context.py::test_an_answer_counts_as_often_as_the_surface_that_saw_it_most",
            "capture/server/test_recorder.py::test_every_layer_that_sees_one_answer_makes_one_record",
        ),
    ),
    Mutant(
        "nobody names their customer in a header",
        "customers.py",
        '        state = connection.scope.get("state")\n',
        '        if claimed := connection.headers.get("x-stripe-customer-id"):\n            return claimed\n'
        '        state = connection.scope.get("state")\n',
        (f"{_REQUESTS}::test_what_a_client_claims_is_not_who_is_billed",),
    ),
    Mutant(
        "two values of a trusted header are none",
        "customers.py",
        """return values[0] if len(values) == 1 and "," not in values[0] else None""",
        "return values[-1] if values else None",
        (f"{_REQUESTS}::test_from_header_trusts_the_gateway_but_not_two_values",),
    ),
    Mutant(
        "a claim in the request's body is no customer",
        "capture/middleware.py",
        '            if message["type"] == "http.request":\n                answer.keep_request(message)\n',
        '            if message["type"] == "http.request":\n                answer.keep_request(message)\n'
        "                import json\n"
        '                claimed = json.loads(message.get("body") or b"{}").get("stripe_customer_id")\n'
        "                request.customer = claimed or request.customer\n",
        (f"{_REQUESTS}::test_what_a_client_claims_is_not_who_is_billed",),
    ),
    Mutant(
        "streams under way leave rows",
        "ledger/writer.py",
        "        if self._queue.qsize() < self._max_queued:\n            self._queue.put(record)\n"
        "            if self._state is not _State.RUNNING:\n                self._not_running()\n\n"
        "    def drop",
        "        return\n\n    def drop",
        (
            "ledger/test_writer.py::test_while_streams_are_under_way_the_ledger_stays_open_through_stop",
            "ledger/test_writer.py::test_only_the_latest_progress_of_a_stream_is_written",
        ),
    ),
    Mutant(
        "rows of a dead process are billed",
        "ledger/lane.py",
        'self._end_streams("true")',
        'self._end_streams("false")',
        ("ledger/test_contract.py::test_progress_of_a_dead_process_becomes_usage",),
        simulated=True,
    ),
    Mutant(
        "a stream in parts: each holds what was not billed before",
        "ledger/handover.py",
        "            entries = [self._parts.rest(entry) for entry in entries]\n",
        "            from dataclasses import replace\n"
        "            name, records = self._parts.name, [e.record for e in entries]\n"
        "            records = [replace(r, id=name(r.id)) for r in records]\n"
        "            entries = [replace(e, record=r) for e, r in zip(entries, records)]\n",
        ("ledger/test_parts.py::test_a_stream_that_does_not_end_is_billed_in_parts_that_add_up",),
    ),
    Mutant(
        "a stream in parts: its lane is let go",
        "ledger/handover.py",
        "        self._cut_streams(now)\n",
        "",
        ("ledger/test_parts.py::test_a_stream_that_does_not_end_is_billed_in_parts_that_add_up",),
    ),
    Mutant(
        "fleet, re-offer window: what was taken stays for a while",
        "ledger/outbox.py",
        "if now - at >= self._window_s]",
        "if now - at >= 0]",
        (f"{_PODS}::test_what_was_taken_stays_for_the_window_and_is_dropped_then",),
    ),
    Mutant(
        "fleet, re-offer window: all of it is offered again",
        "ledger/outbox.py",
        "course.again, course.taken, course.notes, course.retells = held.offered, 0, [], True",
        "course.again, course.notes, course.retells = held.offered, [], True",
        (f"{_BACK}::test_usage_that_was_sent_and_forgotten_is_in_doubt_and_settled_by_stripes_sums",),
    ),
    Mutant(
        "fleet, intent: that records may be in the ledger is on disk before they can be",
        "ledger/outbox.py",
        "            held.course.offered = held.offered + _AHEAD\n            self._save(held, now)\n",
        "            pass\n",
        (f"{_BACK}::test_what_was_offered_and_never_acknowledged_is_doubted_too",),
    ),
    Mutant(
        "fleet, lanes: a record is taken before the lane says so",
        "ledger/outbox.py",
        "        self._intend(held, last, now)\n",
        "        self._intend(held, last, now)\n        course.taken = max(course.taken, last)\n"
        "        self._save(held, now)\n",
        (f"{_PODS}::test_killed_at_any_step_between_lane_and_ledger_everything_is_there_once",),
    ),
    Mutant(
        "fleet, mark: another server is noticed before anything is done",
        "ledger/postgres/ledger.py",
        "            self._met = marks.meet(db, at)\n",
        "            self._met = None\n",
        (f"{_BACK}::test_a_worker_that_remembers_nothing_notices_a_standby_that_took_over",),
    ),
    Mutant(
        "fleet, mark: a lane that was told of more knows better",
        "ledger/postgres/pods.py",
        "    if offer.mark == latest and number < offer.number:",
        "    if False:",
        (f"{_BACK}::test_a_restored_backup_is_noticed_by_a_lane_that_was_told_of_more",),
    ),
    Mutant(
        "fleet, mark: a server whose log is shorter is noticed",
        "ledger/postgres/ledger.py",
        "went_back = db.timeline == self._timeline and db.written < self._written",
        "went_back = False",
        (f"{_BACK}::test_a_restored_backup_is_noticed_by_a_worker_whose_server_was_further",),
    ),
    Mutant(
        "fleet, mark: usage that the copy holds may have been billed",
        "ledger/postgres/marks.py",
        'WHERE "freeze" IS NULL AND held IS NULL AND used_at < %(until)s',
        'WHERE "freeze" IS NULL AND held IS NULL AND used_at < %(until)s AND false',
        (f"{_BACK}::test_a_restored_backup_is_noticed_by_a_worker_whose_server_was_further",),
    ),
    Mutant(
        "fleet, mark: usage that is offered again may have been billed",
        "ledger/postgres/pods.py",
        "    if offer.again and known:\n",
        "    if False:\n",
        (f"{_BACK}::test_usage_that_was_sent_and_forgotten_is_in_doubt_and_settled_by_stripes_sums",),
    ),
    Mutant(
        "fleet, mark: a bucket that was frozen early is no proof",
        "ledger/postgres/marks.py",
        "    if row is not None and now - float(row[0]) < _EARLY_FOR_S:\n",
        "    if False:\n",
        (f"{_BACK}::test_a_bucket_that_a_flush_froze_early_is_doubted_though_it_is_open",),
    ),
    Mutant(
        "fleet, mark: a first flush waits until a standby knows of it",
        "ledger/postgres/marks.py",
        "EARLY_S = 10.0",
        "EARLY_S = 0.0",
        (f"{_BACK}::test_a_first_flush_that_the_standby_does_not_know_of_has_sent_nothing",),
    ),
    Mutant(
        "fleet, mark: a clock that was ahead had ended buckets that are open",
        "ledger/postgres/marks.py",
        "    if known > now:\n",
        "    if False:\n",
        (f"{_BACK}::test_a_bucket_that_had_ended_by_a_clock_that_was_ahead_is_doubted_though_it_is_open",),
    ),
    Mutant(
        "fleet, mark: lanes are heard before a new worker freezes",
        "ledger/postgres/pods.py",
        "return 0 <= now - db.up_since < LISTEN_S and",
        "return False and",
        (f"{_BACK}::test_a_worker_that_was_not_there_before_hears_the_lanes_of_a_restored_backup_first",),
    ),
    Mutant(
        "fleet, mark: a stream that was cut off may have been billed",
        "ledger/postgres/pods.py",
        "**_cut_streams(db, offer)",
        "**{}",
        (f"{_BACK}::test_a_stream_that_was_cut_off_sent_and_forgotten_is_held_whatever_it_comes_to",),
    ),
    Mutant(
        "fleet, mark: a stream that an old backup knows nothing of may have been billed",
        "ledger/postgres/pods.py",
        "    if why is None or not offer.retold:\n",
        "    if True:\n",
        (f"{_BACK}::test_a_stream_that_was_begun_sent_and_forgotten_is_held_whatever_it_comes_to",),
    ),
    Mutant(
        "fleet, mark: what may have been billed is in doubt and not sent",
        "ledger/postgres/freezing.py",
        "            self._db.run(_IN_DOUBT, freeze=freeze, since=since, at=at, why=held)\n",
        "",
        (f"{_BACK}::test_usage_that_was_sent_and_forgotten_is_in_doubt_and_settled_by_stripes_sums",),
    ),
    Mutant(
        "fleet, mark: an event that may have been sent is sent again while Stripe knows it",
        "ledger/postgres/marks.py",
        "CASE state WHEN 'SENDING' THEN attempt_started_at END, %(since)s),",
        "CASE state WHEN 'SENDING' THEN attempt_started_at END, %(now)s),",
        (f"{_BACK}::test_an_event_whose_identifier_stripe_may_have_forgotten_is_not_sent_again",),
    ),
    Mutant(
        "fleet, mark: fences of before mean nothing",
        "ledger/postgres/marks.py",
        "_FENCES = 10**12",
        "_FENCES = 0",
        (f"{_BACK}::test_fences_of_before_change_nothing_after",),
    ),
    Mutant(
        "fleet, mark: numbers of line keys that are lost are forgotten",
        "ledger/postgres/ledger.py",
        "            self._forget()  # numbers that another life of the server gave out\n",
        "",
        (f"{_BACK}::test_numbers_of_line_keys_that_the_lost_server_gave_out_are_not_used_again",),
    ),
    Mutant(
        "fleet, lanes: a folder is a ledger or leads to one",
        "ledger/folder.py",
        "    if mark.is_file() and not forwards:\n",
        "    if False:\n",
        (f"{_PODS}::test_a_folder_of_lanes_is_no_ledger_and_a_ledger_no_folder_of_lanes",),
    ),
    Mutant(
        "fleet, fence: an old lease changes nothing",
        "ledger/postgres/sending.py",
        'if row is None or row[_FENCE] != claim.fence or row[6] != "SENDING":',
        'if row is None or row[6] != "SENDING":',
        (f"{_FLEET}/test_workers.py::test_what_a_worker_that_was_given_up_on_writes_changes_nothing",),
    ),
    Mutant(
        "fleet, dedupe key: what is offered again is known",
        "ledger/postgres/intake.py",
        'made["id"] = tuple([_id(i) for i in made["id"]])',
        'import os\n        made["id"] = tuple([f"{_id(i)} {os.urandom(4).hex()}" for i in made["id"]])',
        (f"{_FAULTS}::test_records_whose_commit_was_not_answered_are_offered_again_and_count_once",),
    ),
    Mutant(
        "fleet, partitions: only their holder freezes and sends",
        "ledger/postgres/workers.py",
        "FROM partition WHERE worker = %(id)s ORDER BY",
        "FROM partition ORDER BY",
        (
            f"{_FLEET}/test_workers.py::test_what_a_worker_that_was_given_up_on_writes_changes_nothing",
            f"{_FLEET}/test_workers.py::test_a_forked_child_is_a_worker_of_its_own",
        ),
    ),
    Mutant(
        "fleet, take-over: what another was sending is in doubt",
        "ledger/postgres/workers.py",
        "return sorted(mine + free), crash_sending(db, now, free)",
        "return sorted(mine + free), []",
        (f"{_FLEET}/test_workers.py::test_what_a_worker_that_was_given_up_on_writes_changes_nothing",),
    ),
    Mutant(
        "fleet, lost answers: a claim that nobody was told of is taken back",
        "ledger/postgres/ledger.py",
        "self._lost += claims  # perhaps",
        "pass  # perhaps",
        (f"{_FAULTS}::test_a_claim_whose_commit_was_not_answered_was_surely_not_sent",),
    ),
    Mutant(
        "fleet, share: what has calls under way is not given away",
        "ledger/postgres/workers.py",
        "e.partition = p.number AND e.state = 'SENDING'",
        "false",
        (f"{_FLEET}/test_workers.py::test_a_share_with_calls_under_way_is_not_given_away",),
    ),
    Mutant(
        "fleet, rates: one is told to slow down, and all do",
        "ledger/postgres/ledger.py",
        "self._pace = pacing.pace(db, len(mine))",
        "pass",
        (f"{_FLEET}/test_rates.py::test_what_one_was_told_all_read_with_their_next_claim",),
    ),
    Mutant(
        "archiving: what was archived is known by its id",
        "ledger/postgres/intake.py",
        "if new and query is _NEW_USAGE else new",
        "if False else new",
        (
            f"{_FLEET}/test_archiving.py::test_a_record_that_was_archived_is_known_when_it_is_offered_again",
            f"{_FLEET}/test_archiving.py::test_one_that_is_offered_while_it_is_being_moved_is_known",
        ),
    ),
    Mutant(
        "archiving: usage whose event a person has to decide of stays",
        "ledger/postgres/archiving.py",
        """AND "freeze" <> ALL(%(undecided)s::bigint[])""",
        "AND %(undecided)s::bigint[] IS NOT NULL",
        (f"{_FLEET}/test_archiving.py::test_what_somebody_may_still_move_stays_with_its_usage",),
    ),
    Mutant(
        "standing still: what was claimed before counts from the claim",
        "senders/threads.py",
        "            self._turn_at = time.time()\n",
        "            pass\n",
        (
            "senders/test_threads.py::test_what_a_process_claimed_before_it_was_stopped_is_not_sent_a_day_later",
        ),
    ),
    Mutant(
        "standing still: a connection that was made since begins nothing",
        "senders/connection.py",
        "if self._sent_at > last_moment.get():",
        "if False:",
        ("senders/test_stripe_v1.py::test_a_process_stopped_while_it_connects_sends_nothing_once_too_late",),
    ),
    Mutant(
        "the next request on a connection is nobody who came before",
        "capture/middleware.py",
        "token = CURRENT.set(None if old is _MISSING else old)",
        "token = CURRENT.set(CURRENT.get())",
        (f"{_SERVED}::test_who_comes_next_on_a_connection_is_nobody_who_came_before",),
    ),
    Mutant(
        "nor is who comes after a body that was waited for",
        "capture/middleware.py",
        "token = CURRENT.set(self.outer)",
        "token = CURRENT.set(CURRENT.get())",
        (f"{_SERVED}::test_nor_who_comes_after_a_body_that_was_waited_for",),
    ),
    Mutant(
        "a path is metered however it is written",
        "capture/routes.py",
        "return matches(path) or (",
        "return matches(path) or False and (",
        (f"{_DISGUISES}::test_a_gateway_that_passes_any_path_on_meters_it_however_it_is_written",),
    ),
    Mutant(
        "no chat is named after an id that comes again",
        "capture/streams.py",
        "return self._lasting and reading.api in _LASTING",
        "return self._lasting",
        (f"{_BACKGROUND}::test_a_chat_that_claims_to_go_on_is_billed_when_it_is_broken_off",),
    ),
    Mutant(
        "a user's words in an error take nobody's reported usage away",
        "capture/calls.py",
        "                self._is_again = True",
        "                self._meter.note_refusal(self._server)\n                self._is_again = True",
        (f"{_STREAMS}::test_a_refusal_of_what_a_user_wrote_takes_nobody_elses_reported_usage_away",),
    ),
    Mutant(
        "a forked process begins with nobody's context",
        "capture/context.py",
        'to that customer."""\n    CURRENT.set(None)',
        'to that customer."""',
        ("homes/test_homes.py::test_a_forked_pool_does_not_bill_whoever_started_it",),
    ),
    Mutant(
        "what is carried is believed only if signed",
        "carrying.py",
        "if not hmac.compare_digest(signature, self._signature(body.encode())):",
        "if False:",
        ("homes/test_carrying.py::test_a_forgery_names_nobody_and_what_is_used_is_kept",),
    ),
    Mutant(
        "a call without an id is known by its counts",
        "capture/overhearing.py",
        "if self._was_heard(reading, own_id) or (",
        "if False or (",
        (
            "capture/server/test_middleware_websockets.py::test_an_answer_that_was_recorded_inside_is_not_recorded_again",
            "adapters/test_all_at_once.py::test_a_call_that_every_layer_sees_is_one_record",
        ),
    ),
    Mutant(
        "a stream that is open below is left to whoever closes it",
        "capture/overhearing.py",
        "if not (opened.is_over or is_other or self._surface in opened.claimed):",
        "if False:",
        ("adapters/test_langchain.py::test_a_stream_that_is_closed_is_billed_once_over_a_wrapped_client",),
    ),
    Mutant(
        "what came of another call is billed beside a stream that is open",
        "capture/overhearing.py",
        'is_other = isinstance(text, str) and not text.startswith(reading.text or "")',
        "is_other = False",
        ("adapters/test_langchain.py::test_a_stream_that_is_closed_is_billed_once_over_a_wrapped_client",),
    ),
    Mutant(
        "what was made earlier is not billed when it is asked for again",
        "adapters/litellm.py",
        "if not is_of_use or (lasting is None and _is_lookup(kind)):",
        "if not is_of_use:",
        ("adapters/test_litellm.py::test_what_was_made_earlier_and_is_asked_for_again_is_not_billed_again",),
    ),
    Mutant(
        "a library's own cache is not billed",
        "adapters/langchain.py",
        "if type(cost) is int and cost == 0:",
        "if False:",
        ("adapters/test_langchain.py::test_what_langchain_answers_from_its_cache_is_not_billed",),
    ),
    Mutant(
        "turns of the model that answered are in its own usage",
        "providers/answers.py",
        'return text(get(iteration, "model")) not in (None, server)',
        "return True",
        (
            "providers/test_advised.py::test_a_model_that_declined_in_mid_answer_is_billed_beside_the_one_that_went_on",
        ),
    ),
    Mutant(
        "a span that repeats an inner one is not billed",
        "adapters/opentelemetry.py",
        "if known is not None and _repeats(reading, known.below):",
        "if False:",
        ("adapters/test_opentelemetry.py::test_what_only_adds_up_is_not_billed_again",),
    ),
    Mutant(
        "brotli gives out no more than is asked for",
        "capture/inflating.py",
        "self._brotli.process(data, output_buffer_limit=most)",
        "self._brotli.process(data, output_buffer_limit=1 << 30)",
        ("capture/server/test_middleware_encodings.py::test_a_bomb_is_not_inflated",),
    ),
    Mutant(
        "what an app says on a websocket is read",
        "capture/conversations.py",
        'if message["type"] == "websocket.send":',
        'if message["type"] == "websocket.none":',
        (
            "capture/server/test_middleware_websockets.py::test_each_answer_of_a_conversation_is_recorded_and_every_message_passes",
        ),
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant."""

    mutant: Mutant
    problem: str | None
    killed_by: str = ""
    simulator: str = ""
    took_s: float = 0.0


def main() -> int:
    asked = _arguments()
    chosen = [m for m in MUTANTS if asked.only in m.name][asked.part[0] :: asked.part[1]]
    print(f"{len(chosen)} mutants; first the tests on the copy as it is", flush=True)
    began = time.monotonic()
    tests = sorted({test for m in chosen for test in m.tests})
    if any(m.simulated for m in chosen) and not asked.quick:
        tests.append(SIMULATOR)
    with ExitStack() as stack, ThreadPoolExecutor(asked.jobs) as pool:
        free: SimpleQueue[Path] = SimpleQueue()
        for _ in range(asked.jobs):
            free.put(stack.enter_context(copied()))

        def judge(mutant: Mutant) -> Verdict:
            folder = free.get()
            try:
                return _tell(_judge(mutant, folder, quick=asked.quick))
            finally:
                free.put(folder)

        folder = free.get()
        code, output = _run(folder, tests)
        free.put(folder)
        if code != 0:
            print(output[-4000:])
            print("the tests do not pass without a mutation: nothing can be proved")
            return 1
        verdicts = list(pool.map(judge, chosen))
    alive = [v for v in verdicts if v.problem]
    print(f"{len(verdicts) - len(alive)} of {len(verdicts)} killed, in {time.monotonic() - began:.0f} s")
    return 1 if alive or not chosen else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="a word of the name")
    parser.add_argument("--quick", action="store_true", help="without the simulator")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--part", type=_part, default=(0, 1), help="such as 2/4, to share the work")
    return parser.parse_args()


def _part(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    return int(number) - 1, int(of)


def _judge(mutant: Mutant, folder: Path, *, quick: bool) -> Verdict:
    """Put a mutant into the copy, run its tests, and take it out again."""
    began = time.monotonic()
    path = folder / "llm_metering" / mutant.file
    source = path.read_text(encoding="utf-8")
    if mutant.old not in source:
        return Verdict(mutant, f"its text is not in {mutant.file} any more: bring the mutant up to date")
    try:
        path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
        os.utime(path, (1, 1))  # of another time than anything that was compiled
        return _judged(mutant, folder, began, quick=quick)
    finally:
        shutil.copy2(ROOT / "llm_metering" / mutant.file, path)


def _judged(mutant: Mutant, folder: Path, began: float, *, quick: bool) -> Verdict:
    code, output = _run(folder, mutant.tests, "-x", compiles=False)
    problem = _problem(code, output, "no test noticed")
    killed_by = next(iter(re.findall(r"^FAILED \S+::(\w+)", output, re.MULTILINE)), "")
    seen = ""
    if mutant.simulated and not quick and problem is None:
        code, output = _run(folder, [SIMULATOR], compiles=False)
        problem = _problem(code, output, "the simulator did not notice")
        told = re.findall(r"BrokenRule: (.+)", output)
        seen = told[-1] if told else ""
    return Verdict(mutant, problem, killed_by, seen, time.monotonic() - began)


def _problem(code: int, output: str, survived: str) -> str | None:
    if code == 0:
        return survived
    # Only a test that ran and failed proves something; 1 is pytest's word for that.
    return None if code == 1 and re.search(r"^FAILED ", output, re.MULTILINE) else f"broken: {output[-1500:]}"


def _tell(verdict: Verdict) -> Verdict:
    mark = "ALIVE " if verdict.problem else "killed"
    print(f"{mark} {verdict.took_s:5.1f} s  {verdict.mutant.name}")
    for line in (verdict.problem, verdict.killed_by, verdict.simulator and f"simulator: {verdict.simulator}"):
        if line:
            print(f"{'':16}{line}", flush=True)
    return verdict


@contextmanager
def copied() -> Iterator[Path]:
    """The package and its tests in a folder of their own. One mutant after the other is put into it, so that
    all the rest is compiled once."""
    with tempfile.TemporaryDirectory(prefix="llm-metering-mutant-") as made:
        folder = Path(made)
        for name in ("llm_metering", "tests", "examples"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        yield folder


def _run(
    folder: Path, tests: list[str] | tuple[str, ...], *options: str, compiles: bool = True
) -> tuple[int, str]:
    """Run tests in the copy. What is compiled of it is kept, unless a mutant is in it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--no-header", *options]
    more = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "" if compiles else "1"}
    try:
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=folder,
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, f"not done within {TIMEOUT_S} s"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
