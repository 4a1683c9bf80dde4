"""The sandbox as a thing that runs: its own API, its file, many clients, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time

import httpx
import pytest
import requests
from llm_metering.sandbox import Switches, create_app, running_sandbox, serve

KEY = {"Authorization": "Bearer sk_test_sandbox"}
METER = {"display_name": "T", "event_name": "tokens", "default_aggregation": {"formula": "sum"}}


def make_meter(sandbox):
    client = sandbox.client()
    client.v1.billing.meters.create(METER)
    return client, client.v1.customers.create({"name": "John Doe"}).id


def send(sandbox, customer, value, **payload):
    payload = {"stripe_customer_id": customer, "value": str(value), **payload}
    sandbox.client().v1.billing.meter_events.create({"event_name": "tokens", "payload": payload})


def test_it_stops_cleanly_and_frees_its_port():
    before = threading.active_count()
    with running_sandbox() as sandbox:
        port = sandbox.port
        assert requests.get(f"{sandbox.url}/_sandbox/health").json()["ok"]
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_it_stops_at_once_though_a_client_hangs():
    with running_sandbox() as sandbox:
        sandbox.fault("accept_then_hang", path="/v1/customers")
        failed = []

        def wait() -> None:
            try:
                requests.get(f"{sandbox.url}/v1/customers", headers=KEY)
            except requests.ConnectionError as exc:
                failed.append(exc)

        waiting = threading.Thread(target=wait)
        waiting.start()
        while sandbox.app.faults:
            time.sleep(0.001)
        started = time.monotonic()
    assert time.monotonic() - started < 5
    waiting.join(5)
    assert failed


def test_a_port_that_is_taken_is_told_plainly():
    with running_sandbox() as sandbox, pytest.raises(OSError, match="in use"), running_sandbox(sandbox.port):
        pass


def test_its_state_survives_in_a_file(tmp_path):
    file = tmp_path / "sandbox.db"
    with running_sandbox(db=file) as sandbox:
        _, customer = make_meter(sandbox)
        send(sandbox, customer, 7)
    with running_sandbox(db=file) as sandbox:
        assert sandbox.client().v1.customers.retrieve(customer).name == "John Doe"
        send(sandbox, customer, 5)
        assert sandbox.books().total(customer=customer) == 12


def test_a_seeded_sandbox_gives_out_new_ids_on_an_old_file(tmp_path):
    file = tmp_path / "sandbox.db"
    ids = set()
    for _ in range(3):
        with running_sandbox(db=file, seed=1) as sandbox:
            ids.add(sandbox.client().v1.customers.create({}).id)
    assert len(ids) == 3


def test_only_the_given_keys_are_accepted():
    with running_sandbox(keys={"sk_test_mine"}) as sandbox:

        def status(key):
            headers = {"Authorization": f"Bearer {key}"}
            return requests.get(f"{sandbox.url}/v1/account", headers=headers).status_code

        assert (status("sk_test_mine"), status("sk_test_other")) == (200, 401)


def test_it_can_be_called_in_process_without_a_port():
    app = create_app()

    async def ask() -> tuple[int, str]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://sandbox") as client:
            made = await client.post("/v1/customers", data={"name": "a"}, headers=KEY)
            with pytest.raises(ConnectionResetError):
                await client.get("/v1/customers", headers={**KEY, "Sandbox-Fault": "accept_then_reset"})
            return made.status_code, made.json()["name"]

    try:
        assert asyncio.run(ask()) == (200, "a")
    finally:
        app.close()


def test_books_settle_and_reset_over_http(sandbox):
    sandbox.set_switches(aggregation_delay_s=60)
    _, customer = make_meter(sandbox)
    send(sandbox, customer, 3, model="m")
    send(sandbox, customer, 4, model="m")
    base = f"{sandbox.url}/_sandbox"
    [row] = requests.get(f"{base}/books").json()["rows"]
    assert (row["customer"], row["value"], row["events"], row["waiting"]) == (customer, "7", 2, 2)
    assert row["dimensions"] == {"model": "m"}
    assert "identifiers" not in row
    [row] = requests.get(f"{base}/books?identifiers=true&account={row['account']}").json()["rows"]
    assert len(set(row["identifiers"])) == 2
    assert requests.get(f"{base}/books?account=acct_other").json()["rows"] == []
    assert requests.post(f"{base}/settle").json() == {"counted": 2}
    assert requests.get(f"{base}/books").json()["rows"][0]["waiting"] == 0
    assert requests.post(f"{base}/reset").json() == {"ok": True}
    assert requests.get(f"{base}/books").json()["rows"] == []


def test_switches_are_read_and_set_over_http(sandbox):
    url = f"{sandbox.url}/_sandbox/switches"
    assert requests.get(url).json()["strict_v1"] is False
    assert requests.post(url, json={"strict_v1": True}).json()["strict_v1"] is True


@pytest.mark.parametrize(
    "changes",
    [{"unicorn": 1}, {"strict_v1": "yes"}, {"clash_answer": "500"}, {"aggregation_delay_s": -1}, [1]],
)
def test_a_switch_that_cannot_be_set_is_refused_with_a_sentence(sandbox, changes):
    answer = requests.post(f"{sandbox.url}/_sandbox/switches", json=changes)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"]


def test_the_own_api_lists_itself_where_a_path_is_unknown(sandbox):
    answer = requests.get(f"{sandbox.url}/_sandbox/unicorn")
    assert answer.status_code == 404
    assert "GET /_sandbox/books" in answer.json()["error"]["message"]


def test_64_clients_at_once_make_no_error_and_no_wrong_sum(sandbox):
    _, customer = make_meter(sandbox)
    statuses = []
    barrier = threading.Barrier(64)

    def work(n: int) -> None:
        connection = http.client.HTTPConnection(sandbox.host, sandbox.port, timeout=30)
        barrier.wait()
        for k in range(10):
            form = (
                f"event_name=tokens&identifier={n}-{k}&payload[stripe_customer_id]={customer}"
                f"&payload[value]={k}&payload[model]=m{n % 4}"
            )
            connection.request("POST", "/v1/billing/meter_events", form, KEY)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 640
    books = sandbox.books()
    assert books.total(customer=customer) == 64 * 45
    assert books.total(model="m1") == 16 * 45


def test_the_same_event_sent_64_times_at_once_is_counted_once(sandbox):
    _, customer = make_meter(sandbox)
    form = f"event_name=tokens&identifier=one&payload[stripe_customer_id]={customer}&payload[value]=1"
    statuses = []

    def work() -> None:
        answer = requests.post(f"{sandbox.url}/v1/billing/meter_events", data=form, headers=KEY)
        statuses.append(answer.status_code)

    threads = [threading.Thread(target=work) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [200] + [400] * 63
    assert sandbox.books().total() == 1


def test_a_killed_sandbox_keeps_every_event_that_it_accepted(tmp_path):
    file = tmp_path / "sandbox.db"
    program = (
        "import sys; from llm_metering.sandbox import serve; "
        "serve(port=0, db=sys.argv[1], ready=lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(file)], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        requests.post(
            f"{url}/v1/billing/meters",
            data={"display_name": "T", "event_name": "tokens", "default_aggregation[formula]": "sum"},
            headers=KEY,
        ).raise_for_status()
        with requests.Session() as session:
            for n in range(50):
                form = f"event_name=tokens&identifier={n}&payload[stripe_customer_id]=c&payload[value]=1"
                session.post(f"{url}/v1/billing/meter_events", data=form, headers=KEY).raise_for_status()
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        with running_sandbox(db=file) as sandbox:
            assert sandbox.books().total() == 50
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_serve_stops_on_sigterm(tmp_path):
    program = (
        "from llm_metering.sandbox import serve; serve(port=0, ready=lambda url: print(url, flush=True))"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().strip()
        assert requests.get(f"{url}/_sandbox/health").json()["ok"]
        os.kill(process.pid, signal.SIGTERM)
        process.wait(5)
    finally:
        process.kill()
        process.wait(10)
        process.stdout.close()


def test_serve_says_which_port_is_taken():
    with running_sandbox() as sandbox, pytest.raises(OSError, match="in use"):
        serve(port=sandbox.port)


def test_a_switch_names_itself_and_its_values_when_it_cannot_be_set():
    with pytest.raises(ValueError, match="clash_answer must be one of 409, 429"):
        Switches().changed({"clash_answer": "418"})


def test_a_file_is_for_one_sandbox_at_a_time(tmp_path):
    file = tmp_path / "sandbox.db"
    with (
        running_sandbox(db=file),
        pytest.raises(sqlite3.OperationalError, match="locked"),
        running_sandbox(db=file),
    ):
        pass


@pytest.mark.parametrize("content", [b"not a database, but long enough to look like one" * 40, None])
def test_a_file_that_is_no_sandbox_is_refused(tmp_path, content):
    file = tmp_path / "other.db"
    if content is None:
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute("PRAGMA user_version=77")
    else:
        file.write_bytes(content)
    with pytest.raises((sqlite3.DatabaseError, ValueError)), running_sandbox(db=file):
        pass


def test_a_snapshot_is_put_back_as_often_as_one_likes(sandbox):
    _, customer = make_meter(sandbox)
    send(sandbox, customer, 3)
    before = sandbox.app.store.dump()
    sandbox.snapshot("shop")
    for _ in range(2):
        send(sandbox, customer, 4)
        sandbox.client().v1.customers.create({"name": "later"})
        assert sandbox.books().total(customer=customer) == 7
        sandbox.restore("shop")
        assert sandbox.app.store.dump() == before
        assert sandbox.books().total(customer=customer) == 3
    sandbox.reset()
    with pytest.raises(ValueError, match="no snapshot 'shop'"):
        sandbox.restore("shop")


def test_snapshots_are_taken_and_put_back_over_http(sandbox):
    base = f"{sandbox.url}/_sandbox"
    sandbox.client().v1.customers.create({"name": "a"})
    assert requests.post(f"{base}/snapshot?name=one").json() == {"snapshot": "one"}
    sandbox.client().v1.customers.create({"name": "b"})
    assert requests.post(f"{base}/restore?name=one").json() == {"restored": "one"}
    assert [c.name for c in sandbox.client().v1.customers.list().data] == ["a"]
    assert requests.post(f"{base}/restore?name=two").status_code == 400


def test_an_account_first_seen_after_the_snapshot_starts_empty_after_it_is_put_back(sandbox):
    sandbox.client().v1.customers.create({"name": "a"})
    sandbox.snapshot()
    sandbox.client("sk_test_late").v1.customers.create({"name": "b"})
    sandbox.restore()
    assert sandbox.client("sk_test_late").v1.customers.list().data == []
    assert len(sandbox.client().v1.customers.list().data) == 1
