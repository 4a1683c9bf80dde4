"""What is carried names its customer elsewhere, and cannot be forged."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_metering import ConfigurationError, Metering, Settings, Usage
from llm_metering.capture.context import current
from llm_metering.capture.waiting import LateTicket
from llm_metering.carrying import Carrier

ONE = Usage(input=1)


def test_customer_and_dimensions_arrive_elsewhere(metering, used, carrier, secret):
    with metering.bound(customer="cus_1", feature="mail"):
        packed = carrier.pack(step="draft")
    elsewhere = Carrier(metering, secret.encode())
    with metering.bound(customer="cus_2", feature="other", region="eu"), elsewhere.bound(packed):
        metering.record(ONE)
    (record,) = used.records
    assert (record.customer, record.dimensions) == ("cus_1", {"feature": "mail", "step": "draft"})


def test_what_is_carried_is_text_that_fits_any_header(carrier):
    packed = carrier.pack(customer="cus_1", note="grüße\r\nx: y")
    assert packed.isascii()
    assert packed.isprintable()
    assert " " not in packed


def forgeries(packed: str) -> dict[str, Any]:
    body, _, signature = packed.partition(".")
    said = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = base64.urlsafe_b64encode(json.dumps({**said, "c": "cus_victim"}).encode()).decode().rstrip("=")
    return {
        "missing": None,
        "empty": "",
        "a bare customer": "cus_victim",
        "no signature": body,
        "an empty signature": body + ".",
        "another body": f"{other}.{signature}",
        "a longer signature": packed + "A",
        "a shorter signature": packed[:-1],
        "no text": 17,
        "bytes": b"\xff\xfe",
        "not ASCII": "é" + packed,
        "too long": "A" * 100_000,
        "no JSON": "AAAA." + signature,
        "a dict": {"c": "cus_victim"},
    }


@pytest.mark.parametrize("kind", sorted(forgeries("e30.x")))
def test_a_forgery_names_nobody_and_what_is_used_is_kept(metering, used, carrier, kind):
    packed = forgeries(carrier.pack(customer="cus_1"))[kind]
    with metering.bound(customer="cus_outside"), carrier.bound(packed):
        metering.record(ONE)
    assert used.by_customer() == {None: 1}
    assert metering.telemetry.snapshot()["carrier.refused"] == 1


def test_what_another_secret_signed_names_nobody(metering, used, carrier):
    other = Carrier(metering, "another secret, as long as it has to be")
    with carrier.bound(other.pack(customer="cus_1")):
        metering.record(ONE)
    assert used.by_customer() == {None: 1}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 400), st.integers(1, 127))
def test_no_changed_character_is_believed(at: int, by: int) -> None:
    metering = Metering(ledger="memory:", settings=Settings())
    carrier = Carrier(metering, "a secret of services and workers")
    packed = carrier.pack(customer="cus_1")
    at %= len(packed)
    changed = packed[:at] + chr((ord(packed[at]) + by) % 128) + packed[at + 1 :]
    if changed == packed:
        return
    assert carrier._unpacked(changed) == (None, {})


def test_what_is_too_old_or_from_the_future_names_nobody(tmp_path, secret):
    clock = [1_800_000_000.0]
    metering = Metering(ledger="memory:", settings=Settings(), now=lambda: clock[0])
    carrier = Carrier(metering, secret, max_age_s=3600)
    packed = carrier.pack(customer="cus_1")
    for after_s, named in ((0, "cus_1"), (3600, "cus_1"), (3700, None), (-200, "cus_1"), (-400, None)):
        clock[0] = 1_800_000_000.0 + after_s
        assert carrier._unpacked(packed)[0] == named, after_s


def test_a_secret_that_could_be_guessed_is_refused(metering):
    with pytest.raises(ConfigurationError, match="16 or more"):
        Carrier(metering, "short")


def test_the_end_of_the_block_waits_until_usage_is_on_disk(tmp_path, secret):
    with Metering(ledger=tmp_path / "ledger", settings=Settings()) as metering:
        carrier = Carrier(metering, secret)
        with carrier.bound(carrier.pack(customer="cus_1")):
            metering.record(ONE)
        assert metering.status().usage_records == 1


def test_an_async_resolver_is_waited_for(secret):
    from llm_metering.capture.context import Scope, entered

    async def resolve(connection: Any) -> str:
        await asyncio.sleep(0)
        return "cus_1"

    metering = Metering(resolve, ledger="memory:", settings=Settings())
    carrier = Carrier(metering, secret)

    async def request() -> str:
        asgi = {"type": "http", "headers": [], "path": "/", "method": "GET", "query_string": b""}
        with entered(Scope(asgi=asgi, owner=metering.recorder)):
            return await carrier.pack_async()

    assert carrier._unpacked(asyncio.run(request()))[0] == "cus_1"


def test_an_async_block_waits_for_the_disk_without_holding_up_the_loop(tmp_path, secret):
    late = LateTicket()

    async def task() -> None:
        async with carrier.bound(carrier.pack(customer="cus_1")):
            metering.record(ONE)
            scope = current()
            assert scope is not None
            scope.tickets = [*(scope.tickets or ()), late]
            # What is done on this very loop could not be, were it held up.
            asyncio.get_running_loop().call_soon(late.fail, None)
        assert late.done
        assert current() is None

    with Metering(ledger=tmp_path / "ledger", settings=Settings()) as metering:
        carrier = Carrier(metering, secret)
        asyncio.run(task())
        assert metering.status().usage_records == 1
