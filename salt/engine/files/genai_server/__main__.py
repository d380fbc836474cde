"""Run the server: `python -m genai_server --model DIR`."""

import contextlib
import logging
import sys
from collections.abc import Sequence

import uvicorn

from genai_server.application import application
from genai_server.engine import Engine
from genai_server.metrics import Metrics
from genai_server.pipeline import last_line
from genai_server.prompts import OpenVinoTokenizer
from genai_server.settings import Settings, SettingsError, settings

log = logging.getLogger("genai_server")


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; 1 when the engine broke, 2 for settings that cannot be."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        chosen = settings(arguments)
    except SettingsError as error:
        log.error("%s", error)
        return 2
    return serve(chosen)


def serve(chosen: Settings) -> int:
    """Serve; return the exit status."""
    broken: list[str] = []
    servers: list[uvicorn.Server] = []

    def end(reason: str) -> None:
        # A server that cannot serve ends, so that who watches the process sees it.
        log.error("the engine ended: %s", reason)
        broken.append(reason)
        for server in servers:
            server.should_exit = True

    log.info("Loading the model %s on %s", chosen.model_folder, chosen.device)
    metrics = Metrics(chosen.model_name)
    metrics.describe(chosen)
    engine = Engine(chosen, metrics, on_broken=end, on_ready=lambda text: log.info("Ready: %s", text))
    try:
        tokenizer = OpenVinoTokenizer(chosen)
    except RuntimeError as error:
        log.error("the tokenizer of %s cannot be loaded: %s", chosen.model_folder, last_line(str(error)))
        return 1
    config = uvicorn.Config(
        application(chosen, engine, tokenizer, metrics),
        host=chosen.host,
        port=chosen.port,
        # One line a request would be the node's largest log.
        access_log=False,
        log_level="warning",
        timeout_graceful_shutdown=max(1, round(chosen.drain_seconds)),
    )
    server = uvicorn.Server(config)
    servers.append(server)
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    return 1 if broken or not server.started else 0


if __name__ == "__main__":
    sys.exit(main())
