"""Functions that show what they get, and do what they are told."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def echo(event: dict[str, Any], context: Any) -> dict[str, Any]:
    shown = {
        "event": event,
        "environment": dict(os.environ),
        "context": {
            "aws_request_id": context.aws_request_id,
            "function_name": context.function_name,
            "invoked_function_arn": context.invoked_function_arn,
            "remaining_ms": context.get_remaining_time_in_millis(),
        },
    }
    return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": json.dumps(shown)}


def obey(event: dict[str, Any], _context: Any) -> Any:
    order = json.loads(event["body"]) if "body" in event else event
    match order["do"]:
        case "return":
            return order["value"]
        case "raise":
            raise ValueError(order["message"])
        case "exit":
            os._exit(order["code"])
        case "sleep":
            time.sleep(order["seconds"])
            Path(order["then_write"]).write_text("still alive")
        case "meet":
            # Shows that others work at the same time: waits until all of them have come.
            place = Path(order["place"])
            (place / order["name"]).touch()
            while len(list(place.iterdir())) < order["count"]:
                time.sleep(0.005)
        case "print":
            sys.stdout.write(order["text"])
        case "fill":
            return {"statusCode": 200, "body": "x" * order["bytes"]}
        case _:
            pass
    return {"statusCode": 200, "body": str(os.getpid())}
