from __future__ import annotations

from dataclasses import fields

import pytest
from llm_metering.errors import ConfigurationError
from llm_metering.settings import Settings, variable


def test_every_setting_can_be_set_from_the_environment() -> None:
    environ = {
        "STRIPE_API_KEY": "sk_test_1",
        "STRIPE_API_BASE": "http://127.0.0.1:12111",
        "STRIPE_METER_EVENTS_BASE": "http://127.0.0.1:12112",
        "LLM_METERING_SENDER": "stream",
        "LLM_METERING_LEDGER": "/var/lib/usage",
        "LLM_METERING_DURABILITY": "memory",
        "LLM_METERING_LANE_FOLDER": "/var/lib/lanes",
        "LLM_METERING_FORWARD_EVERY_S": "2",
        "LLM_METERING_REOFFER_S": "60",
        "LLM_METERING_COMMIT_TIMEOUT_S": "1.5",
        "LLM_METERING_DELIVER": "external",
        "LLM_METERING_FLUSH_EVERY_S": "0.5",
        "LLM_METERING_BUCKET_S": "3600",
        "LLM_METERING_MAX_IN_FLIGHT": "2",
        "LLM_METERING_SEND_TIMEOUT_S": "3",
        "LLM_METERING_RECONCILE_EVERY_S": "60",
        "LLM_METERING_ARCHIVE_AFTER_DAYS": "90",
        "LLM_METERING_DRAIN_S": "0",
        "LLM_METERING_ON_MISSING_CUSTOMER": "reject",
        "LLM_METERING_BILL": "estimated=hold, partial=bill",
        "LLM_METERING_TOKENS_FROM": "tiktoken",
        "LLM_METERING_AUDIT": "0.01",
        "LLM_METERING_ENCODINGS": "o200k_base, cl100k_base",
        "LLM_METERING_PROGRESS_EVERY_S": "4",
        "LLM_METERING_PROGRESS_EVERY_TOKENS": "100",
        "LLM_METERING_ON_DISCONNECT": "drain",
        "LLM_METERING_DISCONNECT_DRAIN_S": "3",
        "LLM_METERING_DISCONNECT_DRAIN_BYTES": "1000",
        "LLM_METERING_MAX_STREAM_S": "90",
        "LLM_METERING_MAX_BODY_BYTES": "1000",
        "LLM_METERING_MAX_LEDGER_BYTES": "1000000",
        "LLM_METERING_MIN_FREE_BYTES": "0",
        "LLM_METERING_AT_CAPACITY": "block",
    }
    settings = Settings.from_env(environ)
    assert {variable(f.name) for f in fields(Settings)} == set(environ)
    unchanged = [f.name for f in fields(Settings) if getattr(settings, f.name) == getattr(Settings(), f.name)]
    assert unchanged == []
    assert settings.bill == {"reported": "bill", "partial": "bill", "counted": "bill", "estimated": "hold"}
    assert settings.encodings == ("o200k_base", "cl100k_base")


@pytest.mark.parametrize(
    ("given", "stream"),
    [
        ({}, "https://meter-events.stripe.com"),
        ({"stripe_api_base": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
        ({"stripe_meter_events_base": "http://127.0.0.1:2"}, "http://127.0.0.1:2"),
        (
            {"stripe_api_base": "http://127.0.0.1:1", "stripe_meter_events_base": "http://127.0.0.1:2"},
            "http://127.0.0.1:2",
        ),
    ],
)
def test_the_stream_is_where_stripe_is_unless_a_sandbox_serves_both(
    given: dict[str, str], stream: str
) -> None:
    assert Settings(**given).stream_base == stream  # type: ignore[arg-type]


def test_an_empty_variable_means_the_default() -> None:
    assert Settings.from_env({"LLM_METERING_BUCKET_S": " "}) == Settings()


def test_arguments_win_over_the_environment() -> None:
    assert Settings.from_env({"LLM_METERING_BUCKET_S": "10"}, bucket_s=30).bucket_s == 30


def test_the_key_does_not_show_in_the_repr() -> None:
    assert "sk_test_secret" not in repr(Settings(stripe_api_key="sk_test_secret"))


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"LLM_METERING_BUCKET_S": "7"}, "must divide an hour"),
        ({"LLM_METERING_BUCKET_S": "7200"}, "must divide an hour"),
        ({"LLM_METERING_BUCKET_S": "soon"}, "LLM_METERING_BUCKET_S='soon' cannot be read"),
        ({"LLM_METERING_FLUSH_EVERY_S": "0"}, "flush_every_s=0.0 must be above 0"),
        ({"LLM_METERING_FLUSH_EVERY_S": "nan"}, "flush_every_s=nan must be above 0"),
        ({"LLM_METERING_DURABILITY": "yes"}, "must be one of commit, memory"),
        ({"LLM_METERING_DELIVER": "later"}, "must be one of thread, external"),
        ({"LLM_METERING_MAX_IN_FLIGHT": "1000"}, "must be from 1 to 64"),
        ({"LLM_METERING_AUDIT": "1.5"}, "must be from 0 to 1"),
        ({"LLM_METERING_DRAIN_S": "-1"}, "must be 0 or more"),
        ({"LLM_METERING_RECONCILE_EVERY_S": "-1"}, "must be 0 or more"),
        ({"LLM_METERING_MAX_LEDGER_BYTES": "-1"}, "max_ledger_bytes=-1 must be 0 or more"),
        ({"LLM_METERING_MIN_FREE_BYTES": "-1"}, "min_free_bytes=-1 must be 0 or more"),
        ({"LLM_METERING_ON_DISCONNECT": "wait"}, "must be one of partial, drain"),
        ({"LLM_METERING_DISCONNECT_DRAIN_S": "0"}, "must be above 0"),
        ({"LLM_METERING_AT_CAPACITY": "drop"}, "must be one of reject, block, allow_unmetered"),
        ({"LLM_METERING_BILL": "guessed=hold"}, "bill holds guessed"),
        ({"LLM_METERING_BILL": "estimated=later"}, "bill holds later"),
        ({"LLM_METERING_BILL": "estimated"}, "cannot be read: write it like"),
        ({"STRIPE_API_BASE": "api.stripe.com"}, "must begin with https://"),
        ({"STRIPE_METER_EVENTS_BASE": "x"}, "stripe_meter_events_base='x' must begin with https://"),
        ({"LLM_METERING_SENDER": "v2"}, "must be one of v1, stream"),
        (
            {"LLM_METERING_SENDER": "stream", "LLM_METERING_RECONCILE_EVERY_S": "0"},
            "sender='stream' needs reconcile_every_s above 0",
        ),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_a_sentence(variables: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        Settings.from_env(variables)


@pytest.mark.parametrize("days", [1, 39, -1])
def test_what_stripe_may_still_ask_about_is_not_archived(days: int) -> None:
    with pytest.raises(ConfigurationError, match=r"archive_after_days=.*35 days"):
        Settings(archive_after_days=days)
