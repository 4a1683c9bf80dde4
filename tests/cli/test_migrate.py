"""`migrate` as typed: shown, asked, done."""

from __future__ import annotations

import pytest


@pytest.fixture
def made(run, at) -> list[dict]:
    """Two subscribers of 0.04, one of them in classic billing with usage; 0.05 was applied since."""
    run("setup", "pay-as-you-go", *at)
    made = [
        run(
            "subscribe", "pay-as-you-go", "--new-customer", mode, "--billing-mode", mode, *at, "--json"
        ).document["subscription"]
        for mode in ("flexible", "classic")
    ]
    for one in made:
        run("test-event", "--customer", one["customer"], *at)
    assert run("apply", "dearer.toml", "--replace", *at).code == 0
    return made


@pytest.fixture(autouse=True)
def catalog(tmp_path) -> None:
    (tmp_path / "dearer.toml").write_text('[pay-as-you-go]\namount = "0.05"\n')


def amounts(client, made) -> list[int]:
    items = [client.v1.subscriptions.retrieve(one["id"])["items"].data[0] for one in made]
    return [item.price.unit_amount for item in items]


def test_a_dry_run_shows_everything_and_moves_nobody(run, at, client, made) -> None:
    seen = run("migrate", "dearer.toml", "--dry-run", "--amounts", *at)
    assert seen.code == 0
    for part in (
        f"> {made[0]['customer']}  {made[0]['id']} (active, flexible)",
        f"! {made[1]['customer']}  {made[1]['id']} (active, classic)",
        "0.05 USD per 100, rounded up",
        "stay at the old price, later use is at the new one",
        "not moved: 3000 used since",
        "next invoice: 1.20 USD -> ",
        "1 subscription to move, 1 that cannot be moved as it is. Nothing was changed.",
    ):
        assert part in seen.out
    assert amounts(client, made) == [4, 4]


def test_it_is_asked_for_and_then_done_and_who_stays_is_told(run, at, client, made) -> None:
    asked = run("migrate", "dearer.toml", *at)
    assert asked.code == 2
    assert "this changes what customers pay; where nobody can be asked, say --yes" in asked.err
    assert amounts(client, made) == [4, 4]
    done = run("migrate", "dearer.toml", "--yes", *at)
    assert done.code == 1, "one stays"
    assert "1 moved." in done.out
    assert f"{made[1]['id']} of {made[1]['customer']} stays as it is: 3000 used since" in done.out
    assert amounts(client, made) == [5, 4]
    rest = run("migrate", "dearer.toml", "--yes", "--to-flexible", *at, "--json")
    assert rest.code == 0
    assert rest.document["migrated"] == {"moved": [made[1]["id"]], "refused": []}
    assert amounts(client, made) == [5, 5]
    again = run("migrate", "dearer.toml", "--yes", *at)
    assert (again.code, again.out) == (0, "Nobody has a price that was replaced.\n")


def test_one_customer_can_be_tried_first(run, at, client, made) -> None:
    first = ["--customer", made[0]["customer"]]
    document = run("migrate", "dearer.toml", "--yes", *first, "--proration", "none", *at, "--json").document
    assert [move["customer"] for move in document["migration"]["moves"]] == [made[0]["customer"]]
    assert amounts(client, made) == [5, 4]


def test_options_that_cannot_work_are_refused(run, at, made) -> None:
    for options, sentence in (
        (["--price", "gold"], "--price 'gold' must be written as OLD=KEY"),
        (["--price", "price_1=gold"], "the catalog has no price 'gold'"),
        (["--proration", "later"], "proration='later' must be one of create_prorations"),
    ):
        ran = run("migrate", "dearer.toml", *options, *at)
        assert ran.code == 2
        assert sentence in ran.err
