"""events/ is what the gateway sends today."""

from local.record_events import CALLS, EVENTS, record, text_of


def test_every_recorded_event_is_what_the_gateway_sends() -> None:
    recorded = record()

    assert {name: text_of(event) for name, event in recorded.items()} == {
        name: (EVENTS / f"{name}.json").read_text() for name in CALLS
    }


def test_no_other_event_lies_about() -> None:
    assert {path.stem for path in EVENTS.glob("*.json")} == {*CALLS, "adopt_litemaas_keys", "migrate_database"}
