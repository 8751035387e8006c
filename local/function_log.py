"""What functions wrote into their log as JSON: log lines, and metrics in CloudWatch's embedded format."""

import json
from collections.abc import Iterator
from typing import Any

_decoder = json.JSONDecoder()


def objects_in(log: str) -> Iterator[dict[str, Any]]:
    """Every object, in the order it was written; what is no JSON is passed over.

    Several may stand on one line: Lambda's runtime client writes a printed text and its line's end by themselves, and
    another process, which in Lambda has a log of its own, may write in between.
    """
    for line in log.splitlines():
        position = 0
        while line.startswith("{", position):
            try:
                found, position = _decoder.raw_decode(line, position)
            except json.JSONDecodeError:
                break
            yield found
