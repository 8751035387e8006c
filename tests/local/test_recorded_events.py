"""events/ is what the gateway and EventBridge Scheduler send today, to every function there is."""

from local.record_events import EVENTS, record, text_of
from local.template import CHECKOUT


def test_every_recorded_event_is_what_the_gateway_sends_and_no_other_lies_about() -> None:
    recorded = record()

    assert {name: text_of(event) for name, event in recorded.items()} == {
        path.stem: path.read_text() for path in EVENTS.glob("*.json")
    }


def test_every_function_has_one() -> None:
    functions = {path.stem for path in (CHECKOUT / "functions").glob("*.py")}

    assert functions - {path.stem for path in EVENTS.glob("*.json")} == set()
