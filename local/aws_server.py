"""The process behind local.aws: moto's KMS and Secrets Manager over HTTP, with the one refusal moto leaves out."""

import argparse
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from moto.kms.models import kms_backends
from moto.moto_server.werkzeug_app import (  # pyright: ignore[reportMissingTypeStubs]
    DomainDispatcherApplication,
    create_backend_app,
)
from werkzeug.serving import BaseWSGIServer, make_server

from local.aws import ACCOUNT_ID, REGION

type Environ = dict[str, Any]
type StartResponse = Callable[..., Any]
type WsgiApplication = Callable[[Environ, StartResponse], Iterable[bytes]]

# The actions KMS refuses while a key is disabled, as far as the service could ever call them.
NEED_AN_ENABLED_KEY = {"TrentService.GenerateMac", "TrentService.VerifyMac"}


def refuse_disabled_keys(application: WsgiApplication) -> WsgiApplication:
    """Moto computes with a disabled key; the real KMS answers DisabledException (KMS API reference, GenerateMac)."""

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if environ.get("HTTP_X_AMZ_TARGET") in NEED_AN_ENABLED_KEY:
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            environ["wsgi.input"] = BytesIO(body)
            key_id = str(json.loads(body)["KeyId"]).rpartition("/")[2]
            key = kms_backends[ACCOUNT_ID][REGION].keys.get(key_id)
            if key is not None and not key.enabled:
                start_response("400 Bad Request", [("Content-Type", "application/x-amz-json-1.1")])
                return [json.dumps({"__type": "DisabledException", "message": f"{key.arn} is disabled."}).encode()]
        return application(environ, start_response)

    return guarded


class Door:
    """The listening socket, which can be closed and opened again while all keys and secrets stay."""

    def __init__(self, application: WsgiApplication, *, port: int) -> None:
        self._application = application
        self._port = port
        self._server: BaseWSGIServer | None = None

    def open(self) -> None:
        if self._server is None:
            self._server = make_server("127.0.0.1", self._port, self._application, threaded=True)
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    port: int = parser.parse_args().port
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    signals = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    # Blocked before the first thread exists, so that every thread leaves them to sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    door = Door(refuse_disabled_keys(DomainDispatcherApplication(create_backend_app)), port=port)
    door.open()
    while (number := signal.sigwait(signals)) != signal.SIGTERM:
        if number == signal.SIGUSR1:
            door.close()
        else:
            door.open()


if __name__ == "__main__":
    main()
