"""Bringing spend: what LiteLLM knows of a key's use arrives in its row, in pages, and only where something changed."""

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx
import psycopg
import pytest

from keyservice.errors import DatabaseUnavailable, GatewayUnavailable
from keyservice.litellm import LiteLLM
from keyservice.models import Deadline, SpendSynced
from keyservice.spend import SpendRules, SpendSync
from tests.integration.service import Service, caller

PLENTY_SECONDS = 60.0
# Less than this left, no pages are asked for.
NEEDED_SECONDS = 15.0
PAGE = 100


@dataclass
class Spend:
    """Alice's keys in both systems, and the job between them."""

    service: Service
    http: httpx.Client
    client: LiteLLM
    user_id: Any
    made: list[str] = field(default_factory=list[str])

    def run(self, *, seconds: float = PLENTY_SECONDS, pages_at_once: int = 4) -> SpendSynced:
        rules = SpendRules(lease_seconds=285.0, gateway_seconds=10.0, reserve_seconds=5.0, pages_at_once=pages_at_once)
        sync = SpendSync(database=self.service.database, litellm=self.client, rules=rules)
        return sync.run(deadline=Deadline(seconds))

    def gateway(self, path: str, **body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def gateway_key(self, **settings: Any) -> str:
        """A key that LiteLLM knows; its secret."""
        key = f"sk-{secrets.token_hex(16)}"
        self.gateway("/key/generate", key=key, **settings)
        self.made.append(key)
        return key

    def row(self, key: str, **columns: Any) -> str:
        """Its row, as LiteMaaS and the service write one; its id."""
        values = {"last_sync_at": None, "last_used_at": None, "current_spend": 0} | columns
        return self.service.value(
            """
            INSERT INTO api_keys (user_id, key_hash, key_prefix, last_sync_at, last_used_at, current_spend)
            VALUES (%(user_id)s, %(hash)s, 'sk-1234', %(last_sync_at)s, %(last_used_at)s, %(current_spend)s)
            RETURNING id
            """,
            {"user_id": self.user_id, "hash": hash_of(key), **values},
        )

    def key(self, *, row: dict[str, Any] | None = None, **settings: Any) -> str:
        """In both systems; the row's id."""
        return self.row(self.gateway_key(**settings), **(row or {}))

    def told(self, key_id: str) -> dict[str, Any]:
        [row] = self.service.rows(
            "SELECT current_spend, budget_reset_at, last_used_at, last_sync_at, xmin::text FROM api_keys WHERE id = %s",
            [key_id],
        )
        return row

    def position(self) -> dict[str, Any]:
        [row] = self.service.rows("SELECT next_page, complete_as_of FROM keyservice_spend_sync")
        return row


def hash_of(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def spend(service: Service) -> Iterator[Spend]:
    client = LiteLLM(
        url=service.gateway_faults.url,
        secret_arn=service.cloud.litellm_secret_arn,
        secret_values=service.cloud.secret_values,
        connections=4,
    )
    authorization = {"authorization": f"Bearer {service.litellm.master_key}"}
    user_id = service.value("SELECT id FROM users WHERE oauth_id = 'alice'")
    with httpx.Client(base_url=service.litellm.url, headers=authorization, trust_env=False, timeout=30) as http:
        spend = Spend(service, http, client, user_id)
        yield spend
        for start in range(0, len(spend.made), PAGE):
            http.post("/key/delete", json={"keys": spend.made[start : start + PAGE]})
    client._http.close()


@pytest.fixture
def three_pages(spend: Spend) -> list[str]:
    """More of other people's keys than two pages hold; Alice's are the first and the last by hash."""
    keys = sorted((spend.gateway_key(spend=1.5) for _ in range(2 * PAGE + 1)), key=hash_of)
    return [spend.row(keys[0]), spend.row(keys[-1])]


def pages_asked(spend: Spend) -> int:
    return len(spend.service.gateway_faults.calls_of("/key/list"))


def test_spend_window_and_last_use_arrive_in_the_row(spend: Spend):
    secret = spend.gateway_key(spend=3.254, max_budget=9, budget_duration="30d")
    key_id = spend.row(secret)
    spend.http.post(
        "/chat/completions",
        headers={"authorization": f"Bearer {secret}"},
        json={"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]},
    )
    [listed] = spend.http.get("/key/list", params={"key_hash": hash_of(secret), "return_full_object": "true"}).json()[
        "keys"
    ]

    report = spend.run()

    row = spend.told(key_id)
    assert report.state == "complete"
    assert report.keys_written == 1
    assert row["current_spend"] == Decimal("3.25")
    assert row["budget_reset_at"] == datetime.fromisoformat(listed["budget_reset_at"])
    assert row["last_used_at"] == datetime.fromisoformat(listed["last_active"])
    assert row["last_sync_at"] <= datetime.now(UTC)


def test_a_key_of_litemaass_making_is_found_as_one_with_our_mark_is(spend: Spend):
    ours = spend.key(
        spend=1, key_alias=f"lmk-0123456789ab:{secrets.token_hex(4)}:1", metadata={"keyservice": {"mark": "x"}}
    )
    litemaass = spend.key(spend=2, metadata={"created_by": "litemaas"})

    spend.run()

    assert [spend.told(key_id)["current_spend"] for key_id in (ours, litemaass)] == [1, 2]


def test_what_has_not_changed_is_not_written_again(spend: Spend):
    changing = spend.gateway_key(spend=1)
    same_id, changing_id = spend.key(spend=2, budget_duration="30d", max_budget=5), spend.row(changing)
    spend.run()
    before = spend.told(same_id)
    spend.gateway("/key/update", key=hash_of(changing), spend=1.75)

    report = spend.run()

    assert report.keys_written == 1
    assert spend.told(same_id) == before
    assert spend.told(changing_id)["current_spend"] == Decimal("1.75")


def test_less_than_a_cent_more_is_no_change(spend: Spend):
    secret = spend.gateway_key(spend=1.001)
    spend.row(secret)
    spend.run()
    spend.gateway("/key/update", key=hash_of(secret), spend=1.002)

    assert spend.run().keys_written == 0


def test_a_row_that_litellm_does_not_know_is_left_alone(spend: Spend):
    key_id = spend.row("sk-nowhere", current_spend=7)
    before = spend.told(key_id)

    spend.run()

    assert spend.told(key_id) == before


def test_more_than_the_column_holds_becomes_the_most_it_holds(spend: Spend):
    huge, small = spend.key(spend=1e12), spend.key(spend=1)

    spend.run()

    assert [spend.told(key_id)["current_spend"] for key_id in (huge, small)] == [Decimal("99999999.99"), 1]


def test_a_later_use_that_litemaas_wrote_stays(spend: Spend):
    later = datetime.now(UTC) + timedelta(hours=1)
    key_id = spend.key(spend=1, row={"last_used_at": later})

    spend.run()

    assert spend.told(key_id)["last_used_at"] == later


def test_a_row_brought_into_agreement_after_litellm_was_asked_stays(spend: Spend):
    """A spend that was reset a moment ago does not come back from a page that was read before."""
    soon = datetime.now(UTC) + timedelta(minutes=5)
    key_id = spend.key(spend=50, row={"last_sync_at": soon, "current_spend": 0})

    spend.run()

    assert spend.told(key_id)["current_spend"] == 0


def test_a_row_that_somebody_holds_is_not_waited_for(spend: Spend):
    held, free = spend.key(spend=1), spend.key(spend=2)
    with psycopg.connect(spend.service.database_under_test.admin_dsn) as other:
        other.execute("SELECT FROM api_keys WHERE id = %s FOR UPDATE", [held])

        meanwhile = spend.run()
    afterwards = spend.run()

    assert (meanwhile.keys_written, afterwards.keys_written) == (1, 1)
    assert [spend.told(key_id)["current_spend"] for key_id in (held, free)] == [1, 2]


def test_all_pages_are_read_each_once_and_no_key_by_itself(spend: Spend, three_pages: list[str]):
    report = spend.run()

    assert report.state == "complete"
    assert report.pages == pages_asked(spend) == -(-report.keys_read // PAGE)
    assert {call.path.partition("?")[0] for call in spend.service.gateway_faults.calls} == {"/key/list"}
    assert [spend.told(key_id)["current_spend"] for key_id in three_pages] == [Decimal("1.5")] * 2


def test_pages_are_written_in_one_statement_each(spend: Spend, three_pages: list[str]):
    spend.service.database_faults.reset_counts()

    report = spend.run(pages_at_once=1)

    assert spend.service.database_faults.steps == [
        "claim_position",
        *["write_spend"] * report.pages,
        "release_position",
    ]


@pytest.mark.parametrize(
    ("break_it", "failure"),
    [
        pytest.param(
            lambda service: service.database_faults.cut_before("write_spend", nth=2),
            DatabaseUnavailable,
            id="the database before the second page",
        ),
        pytest.param(
            lambda service: service.gateway_faults.inject(
                "/key/list", "call", call=lambda: service.gateway_faults.inject("/key/list", "status", status=500)
            ),
            GatewayUnavailable,
            id="LiteLLM at the second page",
        ),
    ],
)
def test_a_run_goes_on_where_a_broken_one_stopped(
    break_it: Callable[[Service], object], failure: type[Exception], spend: Spend, three_pages: list[str]
):
    break_it(spend.service)
    with pytest.raises(failure):
        spend.run(pages_at_once=1)
    assert spend.position() == {"next_page": 2, "complete_as_of": None}
    assert [spend.told(key_id)["current_spend"] for key_id in three_pages] == [Decimal("1.5"), 0]

    report = spend.run(pages_at_once=1)

    assert report.state == "complete"
    assert [spend.told(key_id)["current_spend"] for key_id in three_pages] == [Decimal("1.5")] * 2


def test_a_run_without_time_asks_nothing_and_forgets_nothing(spend: Spend, three_pages: list[str]):
    report = spend.run(seconds=NEEDED_SECONDS - 1)

    assert (report.state, report.pages, pages_asked(spend)) == ("unfinished", 0, 0)
    assert spend.position()["next_page"] == 1


def test_after_the_rest_of_a_round_comes_a_whole_one(spend: Spend, three_pages: list[str]):
    spend.service.rows("UPDATE keyservice_spend_sync SET next_page = 3")

    report = spend.run(pages_at_once=1)

    total = -(-spend.http.get("/key/list", params={"size": 1}).json()["total_count"] // PAGE)
    assert (report.state, report.pages) == ("complete", total - 2 + total)
    assert spend.position()["next_page"] == 1


def test_a_round_that_grew_shorter_than_its_position_begins_anew(spend: Spend):
    key_id = spend.key(spend=1)
    spend.service.rows("UPDATE keyservice_spend_sync SET next_page = 4711")

    report = spend.run()

    assert report.state == "complete"
    assert spend.told(key_id)["current_spend"] == 1


def test_a_second_run_at_the_same_time_does_nothing(spend: Spend):
    spend.key(spend=1)
    spend.service.rows("UPDATE keyservice_spend_sync SET lease_until = now() + interval '4 minutes'")

    report = spend.run()

    assert (report.state, report.pages, pages_asked(spend)) == ("busy", 0, 0)


def test_a_list_says_as_of_when_the_spend_of_an_unchanged_key_is(spend: Spend):
    spend.key(spend=1)
    spend.run()
    [first] = spend.service.list_keys().data
    spend.run()

    [second] = spend.service.list_keys().data

    assert isinstance(first.spend_as_of, str)
    assert isinstance(second.spend_as_of, str)
    assert first.spend_as_of < second.spend_as_of
    assert second.current_spend == 1


def test_a_list_does_not_vouch_for_the_spend_of_a_key_that_litellm_never_told_of(spend: Spend):
    spend.row("sk-nowhere-either", current_spend=7)
    spend.run()

    [listed] = spend.service.list_keys(caller().subject or "").data

    assert not isinstance(listed.spend_as_of, str)
