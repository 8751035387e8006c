"""How the demo looks on a terminal: steps, requests and answers, in 100 columns of plain ASCII."""

import json
import textwrap
from collections.abc import Collection, Sequence
from typing import TextIO

type Json = dict[str, Json] | list[Json] | str | int | float | bool | None

WIDTH = 100
_INDENT = "   "
_SPEAKER_WIDTH = 10
_TALK_WIDTH = WIDTH - len(_INDENT) - _SPEAKER_WIDTH - len(" > ")

_BOLD, _DIM, _RED, _GREEN = "1", "2", "31", "32"


class Narrator:
    """Writes at once, so that whoever waits sees for what."""

    def __init__(self, out: TextIO, *, is_coloured: bool) -> None:
        self._out = out
        self._is_coloured = is_coloured
        self._steps = 0
        self._last_speaker = ""

    @property
    def steps(self) -> int:
        """How many have begun."""
        return self._steps

    def paragraph(self, text: str) -> None:
        self._write(_filled(" ".join(text.split())))
        self._write("")

    def progress(self, doing: str) -> None:
        self._write(f"{_INDENT}{doing}", _DIM)

    def step(self, sentence: str) -> None:
        """Numbers itself."""
        self._steps += 1
        self._last_speaker = ""
        number = f"{self._steps}. ".ljust(len(_INDENT))
        self._write("")
        self._write(_filled(sentence, initial_indent=number, subsequent_indent=" " * len(number)), _BOLD)
        self._write("")

    def request(self, speaker: str, *parts: str | Json) -> None:
        """To `speaker`; a part that is a string stands as it is, all others as JSON."""
        self._talk(speaker, ">", parts)

    def answer(self, speaker: str, *parts: str | Json) -> None:
        self._talk(speaker, "<", parts)

    def event(self, sentence: str) -> None:
        """Something that happens between two requests."""
        self._last_speaker = ""
        self._write(f"{_INDENT}-- {sentence} --")

    def held(self, sentence: str) -> None:
        text = _filled(sentence, initial_indent=f"{_INDENT}ok: ", subsequent_indent=f"{_INDENT}    ")
        self._write(text, _GREEN)

    def failed(self, *, expected: str, came: str) -> None:
        self._write(f"{_INDENT}FAILED: step {self._steps} did not hold", _RED)
        for name, text in (("expected", expected), ("came", came)):
            lead = f"{_INDENT}{name.ljust(_SPEAKER_WIDTH)} "
            self._write(_filled(text, initial_indent=lead, subsequent_indent=" " * len(lead)))

    def note(self, sentence: str) -> None:
        self._write("")
        self._write(_filled(sentence, initial_indent=_INDENT, subsequent_indent=_INDENT))

    def verbatim(self, title: str, lines: Sequence[str]) -> None:
        """However long they are."""
        self._write("\n".join([f"{_INDENT}{title}:", *lines]))

    def summary(self, sentence: str) -> None:
        self._write("")
        self._write(sentence, _BOLD)

    def _talk(self, speaker: str, direction: str, parts: Sequence[str | Json]) -> None:
        for part in parts:
            for line in [part] if isinstance(part, str) else layout(part, width=_TALK_WIDTH):
                shown = "" if speaker == self._last_speaker else speaker
                self._last_speaker = speaker
                self._write(f"{_INDENT}{shown.ljust(_SPEAKER_WIDTH)} {direction} {line}")

    def _write(self, text: str, colour: str | None = None) -> None:
        is_plain = colour is None or not self._is_coloured
        print(text if is_plain else f"\x1b[{colour}m{text}\x1b[0m", file=self._out, flush=True)


def layout(value: Json, *, width: int, lead: str = "", indent: str = "") -> list[str]:
    """JSON in as few lines as fit the width; a long sentence is wrapped, a long word cut."""
    flat = f"{indent}{lead}{json.dumps(value)}"
    if len(flat) < width:  # the last column is for a comma
        return [flat]
    match value:
        case dict():
            brackets, members = "{}", [(f"{json.dumps(name)}: ", member) for name, member in value.items()]
        case list():
            brackets, members = "[]", [("", member) for member in value]
        case _:
            if " " not in str(value):
                return [f'{shortened(flat, width - 2)}"']
            hanging = " " * (len(indent) + len(lead) + len('"'))
            return _filled(flat, width - 1, subsequent_indent=hanging).splitlines()
    lines = [f"{indent}{lead}{brackets[0]}"]
    for position, (name, member) in enumerate(members, start=1):
        block = layout(member, width=width, lead=name, indent=f"{indent}  ")
        lines += [*block[:-1], block[-1] + ("," if position < len(members) else "")]
    return [*lines, f"{indent}{brackets[1]}"]


def brief(value: Json, *, only: Collection[str] = ()) -> Json:
    """Without fields that are empty, or with those in `only` alone, at any depth; says how many it left out."""
    if isinstance(value, list):
        return [brief(member, only=only) for member in value]
    if not isinstance(value, dict):
        return value
    kept = {
        name: brief(member, only=only)
        for name, member in value.items()
        if (name in only if only else member is not None and member not in ("", {}))
    }
    left_out = len(value) - len(kept)
    return {**kept, "...": f"{left_out} {'more' if only else 'empty'}"} if left_out else kept


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."


def _filled(text: str, width: int = WIDTH, *, initial_indent: str = "", subsequent_indent: str = "") -> str:
    # An id broken at one of its hyphens could not be copied.
    return textwrap.fill(
        text, width, initial_indent=initial_indent, subsequent_indent=subsequent_indent, break_on_hyphens=False
    )
