"""The manifests are YAML that names settings, commands and paths that there are, and what they say runs: on
this machine, with the same environment and signals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from llm_metering import billing
from llm_metering.ledger.postgres import PostgresBooks
from llm_metering.sandbox import running_sandbox
from llm_metering.settings import Settings, variable

pytestmark = pytest.mark.once

yaml = pytest.importorskip("yaml")
FOLDER = Path(__file__).parents[2] / "examples/kubernetes"
SETTINGS = {variable(f.name) for f in fields(Settings)}


def documents() -> list[dict[str, Any]]:
    found = [d for path in sorted(FOLDER.glob("*.yaml")) for d in yaml.safe_load_all(path.read_text())]
    return [d for d in found if "kind" in d]


def of(kind: str) -> dict[str, dict[str, Any]]:
    return {d["metadata"]["name"]: d for d in documents() if d["kind"] == kind}


def containers() -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for document in documents():
        if document["kind"] in ("Deployment", "Job"):
            pod = document["spec"]["template"]["spec"]
            for container in pod["containers"]:
                yield pod, container


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    return found


def commands() -> list[list[str]]:
    return [c["command"] for _, c in containers()] + [
        s["command"] for s in compose().values() if "command" in s
    ]


def test_every_setting_that_is_named_exists_and_has_a_value_that_works() -> None:
    (config,) = (d["data"] for d in of("ConfigMap").values())
    named = {e["name"] for _, c in containers() for e in c.get("env", [])} | set(config)
    named |= {name for s in compose().values() for name in s.get("environment", {}) if "POSTGRES" not in name}
    assert named - SETTINGS == {"PORT"}
    settings = Settings.from_env({**config, "LLM_METERING_LEDGER": "postgresql://db/billing"})
    assert settings.deliver == "external"


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_is_one_that_parses(command: list[str]) -> None:
    program, *words = command
    assert program in ("uvicorn", "llm-metering")
    if program == "uvicorn":
        import uvicorn

        given = [re.sub(r"\$\(PORT\)", "8000", word) for word in words]
        assert uvicorn.main.make_context("uvicorn", given).params["app"] == "app:app"
        return
    from llm_metering.cli.app import app

    found: Any = typer.main.get_command(app)
    while words and not words[0].startswith("-"):
        found = found.commands[words.pop(0)]
    found.make_context("llm-metering", words)


def test_secrets_are_only_named_and_services_have_no_stripe_key() -> None:
    for _, container in containers():
        for each in container.get("env", []):
            if each["name"] in ("STRIPE_API_KEY", "LLM_METERING_LEDGER"):
                assert set(each["valueFrom"]["secretKeyRef"]) == {"name", "key"}
    keys = {c["name"] for _, c in containers() for e in c.get("env", []) if e["name"] == "STRIPE_API_KEY"}
    assert keys == {"worker"}


def test_selectors_find_their_pods_and_lanes_have_a_disk() -> None:
    (config,) = (d["data"] for d in of("ConfigMap").values())
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in of("Deployment").values()]
    for kind in ("Deployment", "PodDisruptionBudget"):
        for document in of(kind).values():
            assert document["spec"]["selector"]["matchLabels"] in labels
    assert of("Service")["chat"]["spec"]["selector"] in labels
    (service,) = ((pod, c) for pod, c in containers() if c["name"] == "chat")
    mounts = {m["mountPath"]: m["name"] for m in service[1]["volumeMounts"]}
    assert mounts[config["LLM_METERING_LANE_FOLDER"]] in {v["name"] for v in service[0]["volumes"]}


def test_the_grace_is_longer_than_all_that_an_end_may_take() -> None:
    defaults = Settings()
    for pod, container in containers():
        if "restartPolicy" in pod:
            continue
        stop = (
            container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
        )
        words = container["command"]
        requests = int(words[words.index("--timeout-graceful-shutdown") + 1]) if "uvicorn" in words else 0
        assert pod["terminationGracePeriodSeconds"] > int(stop[1]) + requests + 2 * defaults.drain_s


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_manifests_run_here_and_a_rolling_update_loses_and_doubles_nothing() -> None:
    from tests.ledger.postgres.cluster import Cluster, needed

    cluster = Cluster(needed())
    try:
        cluster.start()
        ledger = cluster.new_database()
        with running_sandbox() as sandbox:
            client = sandbox.client()
            billing.apply(billing.PayAsYouGo(), client)
            customer = billing.create_customer(client, "Ada")
            words = ["--ledger", ledger, "--stripe", sandbox.url, "--customer", customer, "--seconds", "2"]
            done = subprocess.run(
                [sys.executable, str(FOLDER / "run_here.py"), *words],
                env={**os.environ, "NO_PROXY": "127.0.0.1"},
                capture_output=True,
                text=True,
                timeout=240,
                check=False,
            )
            assert done.returncode == 0, done.stderr + done.stdout
            said = json.loads(done.stdout)
            books = PostgresBooks(ledger)
            recorded = sum(b.recorded for b in books.balances())
            billed = sum(row.value for row in sandbox.books())
        assert said["all_went_by_themselves"] is True
        assert said["left"] == 0
        assert said["answered"] > 20
        assert recorded >= 10 * said["answered"], "what was answered is recorded"
        assert billed == recorded, "and billed, once"
        assert all(b.conserved for b in books.balances())
    finally:
        cluster.remove()
