"""Every expected error is one line on stderr that says what to do, with exit code 1 or 2."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def assert_one_line(ran, code: int, sentence: str) -> None:
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert ran.err.startswith("llm-metering: ")
    assert ran.err.count("\n") == 1, ran.err
    assert sentence in ran.err


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["bogus"], "No such command 'bogus'. Try: llm-metering --help"),
        (["setup"], "Missing command. Try: llm-metering setup --help"),
        (
            ["setup", "flat-fee", "--bogus"],
            "No such option: --bogus. Try: llm-metering setup flat-fee",
        ),
        (["setup", "flat-fee", "--included", "many"], "Invalid value for '--included'"),
        (["test-event"], "Missing option '--customer'"),
        (["subscribe"], "Missing argument 'PLAN'"),
        (
            ["subscribe", "gold", "--customer", "cus_1"],
            "no plan 'gold'; there are pay-as-you-go and",
        ),
        (["subscribe", "flat-fee"], "say who subscribes: --customer cus_… or --new-customer NAME"),
        (
            ["subscribe", "pay-as-you-go", "--customer", "c", "--seats", "2"],
            "--seats needs a plan with a",
        ),
        (
            ["subscribe", "pay-as-you-go", "--customer", "c", "--license-billed", "with_usage"],
            "--license-billed belongs to flat-fee",
        ),
        (["preview"], "say whose invoice: --subscription sub_… or --customer cus_…"),
        (["preview", "--customer", "c", "--subscription", "s"], "say whose invoice"),
        (["setup", "pay-as-you-go"], "no Stripe API key: set STRIPE_API_KEY to a test key"),
        (["setup", "pay-as-you-go", "--api-key", "pk_test_1"], "this is a publishable key"),
        (
            ["preview", "--customer", "c", "--api-key", "sk_live_1234"],
            "this is a live key, and a test key is meant",
        ),
        (
            ["setup", "flat-fee", "--live", "--api-key", "sk_live_1", "--api-base", "http://127.0.0.1:1"],
            "a live key is not sent to http://127.0.0.1:1",
        ),
        (["setup", "flat-fee", "--sandbox", "--api-base", "http://127.0.0.1:1"], "exclude each other"),
        (["setup", "pay-as-you-go", "--currency", "uds", "--sandbox"], "did you mean 'usd'?"),
        (["setup", "pay-as-you-go", "--amount", "0,04", "--sandbox"], "amount='0,04' is not a number"),
        (["setup", "pay-as-you-go", "--currency", "jpy", "--sandbox"], "meant for a currency with cents"),
        (["setup", "flat-fee", "--interval", "moon", "--sandbox"], "interval='moon' must be one of"),
        (
            ["test-event", "--customer", "c", "--dimension", "model", "--sandbox"],
            "must be written as KEY=",
        ),
        (["usage", "--csv", "--json"], "--csv and --json exclude each other"),
        (["status", "--ledger", "memory:"], "a ledger in memory cannot be looked into from outside"),
    ],
)
def test_a_command_used_wrongly_exits_with_2(run, argv, sentence) -> None:
    if "--json" in argv:
        ran = run(*argv)
        assert (ran.code, json.loads(ran.out)["error"]) == (2, sentence)
    else:
        assert_one_line(run(*argv), 2, sentence)


def test_a_sandbox_that_does_not_run_is_told_with_how_to_start_it(run) -> None:
    port = free_port()
    for where in (["--sandbox", f"http://127.0.0.1:{port}"], ["--api-base", f"http://127.0.0.1:{port}"]):
        assert_one_line(
            run("setup", "pay-as-you-go", *where),
            1,
            f"no sandbox answers at http://127.0.0.1:{port}; start it in another terminal with: "
            f"llm-metering sandbox --port {port}",
        )


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (
            ["preview", "--customer", "cus_nobody"],
            "there is no customer 'cus_nobody' on this Stripe",
        ),
        (["preview", "--subscription", "sub_nobody"], "there is no subscription 'sub_nobody'"),
        (["test-event", "--customer", "cus_nobody"], "there is no customer 'cus_nobody'"),
        (["subscribe", "pay-as-you-go", "--customer", "cus_nobody"], "there is no customer 'cus_nobody'"),
    ],
)
def test_what_is_not_there_is_named(run, at, argv, sentence) -> None:
    run("setup", "pay-as-you-go", *at)
    assert_one_line(run(*argv, *at), 1, sentence)


def test_a_wrong_key_is_told_and_not_shown(run, at, sandbox) -> None:
    sandbox.fault("401", count=None)
    ran = run("setup", "pay-as-you-go", *at, "--api-key", "sk_test_wrong0000secret")
    assert_one_line(ran, 1, "Check STRIPE_API_KEY")
    assert "wrong0000" not in ran.err


def test_a_ledger_that_is_not_there_is_told(run) -> None:
    for command in ("status", "usage"):
        assert_one_line(run(command), 1, "there is no ledger at .llm_metering")


def test_with_json_an_error_is_a_document_too(run) -> None:
    ran = run("preview", "--json")
    assert ran.code == 2
    assert ran.document == {"error": "say whose invoice: --subscription sub_… or --customer cus_…"}
    assert ran.err == f"llm-metering: {ran.document['error']}\n"
    assert run("bogus", "--json").document["error"].startswith("No such command 'bogus'")


def test_a_bad_setting_of_the_environment_is_told(run, monkeypatch) -> None:
    monkeypatch.setenv("STRIPE_API_BASE", "localhost")
    assert_one_line(run("setup", "flat-fee"), 2, "stripe_api_base='localhost' must begin with https://")


def test_no_traceback_and_no_colour_reach_a_pipe(spawn) -> None:
    ran = spawn("setup", "pay-as-you-go", "--sandbox", f"http://127.0.0.1:{free_port()}")
    assert ran.code == 1
    assert "Traceback" not in ran.err
    assert "\x1b" not in ran.err + ran.out
    assert ran.err.count("\n") == 1


def test_no_colour_reaches_a_file_and_no_table_is_folded(spawn, at) -> None:
    ran = spawn("setup", "flat-fee", *at)
    assert ran.code == 0
    assert "\x1b" not in ran.out + ran.err
    assert "hypernian_tokens.flat_fee.overage.usd.month" in ran.out


def test_a_terminal_without_unicode_gets_a_plain_answer(spawn, at) -> None:
    ran = spawn("setup", "pay-as-you-go", *at, PYTHONIOENCODING="ascii")
    assert ran.code == 0
    assert "hypernian_tokens.pay_as_you_go.usd.month" in ran.out


def test_a_reader_that_goes_away_is_no_crash(at) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "llm_metering", "setup", "flat-fee", "--dry-run", *at],
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr == b""


def test_help_and_version_are_answers_not_errors(run, spawn) -> None:
    version = spawn("--version")
    assert (version.code, version.out) == (0, "llm-metering 0.1.0\n")
    assert run("--help").code == 0
    assert "Set up one of Stripe's pricing guides" in run("--help").out
    assert run("setup", "flat-fee", "--help").code == 0


def test_no_command_at_all_shows_the_help_and_exits_with_2(spawn) -> None:
    ran = spawn()
    assert ran.code == 2
    assert "test-event" in ran.out + ran.err


@pytest.mark.parametrize(("missing", "extra"), [("typer", "cli"), ("rich", "cli"), ("uvicorn", "sandbox")])
def test_a_missing_extra_is_told_with_how_to_install_it(tmp_path, missing, extra) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from llm_metering.__main__ import main; sys.exit(main(['sandbox', '--port', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"{missing} is not installed; install it with: pip install 'llm_metering[{extra}]'" in done.stderr
    assert done.stderr.count("\n") == 1
