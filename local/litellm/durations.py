"""LiteLLM's notation for durations, and when a budget starts anew."""

import calendar
import re
from datetime import UTC, datetime, timedelta

from local.litellm.refusals import refused_as_repr

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
WORDS = {"hourly": "1h", "daily": "24h", "weekly": "7d", "monthly": "30d"}


class Unparsable(Exception):
    pass


def now() -> datetime:
    """To the millisecond, which is what LiteLLM's database keeps."""
    moment = datetime.now(UTC)
    return moment.replace(microsecond=moment.microsecond // 1000 * 1000)


def duration_from(text: str, *, start: datetime) -> timedelta:
    """Only the beginning of the text is read: "1d12h" is one day. Raises Unparsable."""
    match = re.match(r"(\d+)(mo|[smhdw])", WORDS.get(text.strip().lower(), text))
    if match is None:
        raise Unparsable("not a duration")
    count, unit = int(match[1]), match[2]
    try:
        if unit == "mo":
            return months_later(start, months=count) - start
        duration = timedelta(seconds=count * UNIT_SECONDS[unit])
        _ = start + duration
    except (OverflowError, ValueError) as error:
        raise Unparsable("beyond the calendar") from error
    return duration


def months_later(moment: datetime, *, months: int) -> datetime:
    year, month = divmod(moment.year * 12 + moment.month - 1 + months, 12)
    last_day = calendar.monthrange(year, month + 1)[1]
    return moment.replace(year=year, month=month + 1, day=min(moment.day, last_day))


def expiry_after(text: str) -> str:
    """Raises Unparsable."""
    start = now()
    return (start + duration_from(text, start=start)).isoformat()


def budget_reset_after(text: str, **shape: str) -> str:
    """The next round moment in UTC, not now plus the period: a month ends on the 1st, a week on Monday."""
    try:
        moment = now()
        if duration_from(text, start=moment) <= timedelta(0):
            raise Unparsable("not positive")
        return _next_round_moment(WORDS.get(text.strip().lower(), text), moment).isoformat()
    except Unparsable:
        raise refused_as_repr(400, "budget_duration is not one of the known periods", **shape) from None


def _next_round_moment(text: str, moment: datetime) -> datetime:
    # Letters are taken greedily here, unlike in a duration: "1month" passes there and is no period.
    match = re.match(r"(\d+)([a-z]+)", text)
    assert match is not None
    count, unit = int(match[1]), match[2]
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "w":
        count, unit = count * 7, "d"
    match unit, count:
        case ("mo", 1) | ("d", 30):
            return months_later(midnight.replace(day=1), months=1)
        case "mo", _:
            raise Unparsable("more than one month")
        case "d", 7:
            return midnight + timedelta(days=7 - moment.weekday())
        case "d", days:
            return midnight + timedelta(days=days)
        case "h", hours:
            return midnight + timedelta(hours=min(24, (moment.hour // hours + 1) * hours))
        case "m", minutes:
            return moment.replace(minute=0, second=0, microsecond=0) + timedelta(
                minutes=(moment.minute // minutes + 1) * minutes
            )
        case "s", seconds:
            return moment.replace(second=0, microsecond=0) + timedelta(seconds=(moment.second // seconds + 1) * seconds)
        case _:
            return midnight + timedelta(days=1)
