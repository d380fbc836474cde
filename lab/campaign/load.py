"""Send short requests to a head without end, and write each one's outcome: run inside the lab's control node.

As ``load.py URL MODEL KEY_FILE FILE CLIENTS``, with the API's key in a file, since a place takes nothing over from the
environment of who enters it: a line of JSON for each request, with when it began and ended (unix seconds).
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

TOKENS = 8
TIMEOUT_SECONDS = 120.0
PAUSE_SECONDS = 0.5


def ask(place: str, model: str, key: str, words: int) -> str | None:
    """Ask for a few tokens; return what went wrong, or None."""
    connection = http.client.HTTPConnection(place, timeout=TIMEOUT_SECONDS)
    try:
        content = {"model": model, "prompt": "word " * words, "max_tokens": TOKENS, "temperature": 0}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        connection.request("POST", "/v1/completions", json.dumps(content), headers)
        answer = connection.getresponse()
        answer.read()
        return None if answer.status == 200 else f"status {answer.status}"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def client(place: str, model: str, key: str, path: Path, seed: int) -> None:
    """Ask again and again."""
    chance = random.Random(seed)
    with path.open("a", encoding="utf-8", buffering=1) as file:
        while True:
            began = time.time()
            error = ask(place, model, key, chance.randint(4, 64))
            file.write(json.dumps({"began": began, "ended": time.time(), "error": error}) + "\n")
            # Where nobody answers, asking at once again is only noise.
            time.sleep(PAUSE_SECONDS if error else 0.0)


def main(url: str, model: str, key_file: str, path: str, clients: int) -> None:
    """Run so many clients until the process is ended."""
    place = urlsplit(url).netloc
    key = Path(key_file).read_text(encoding="ascii").strip()
    threads = [threading.Thread(target=client, args=(place, model, key, Path(path), seed)) for seed in range(clients)]
    for thread in threads:
        thread.start()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
