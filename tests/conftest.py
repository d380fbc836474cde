"""Set up every test: output as wide as on a wide terminal, whatever pytest was started from."""

import os
import signal
from collections.abc import Iterator

import pytest

# Read by rich when its consoles are made, so before anything of cli is imported.
os.environ["COLUMNS"] = "160"
# A shell that starts a job in the background has it ignore Ctrl-C, and what a test starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def salt_keeps_no_early_log() -> Iterator[None]:
    """End Salt's early log handler: what it holds until the end goes to a stream that pytest has closed by then."""
    import salt._logging

    salt._logging.shutdown_temp_handler()
    yield
