"""Ask an engine over HTTP, never by a proxy, which does not know the cluster's addresses."""

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from salt.exceptions import CommandExecutionError


def ask(url: str, content: Mapping[str, Any] | None, timeout: float, key: str | None = None) -> str:
    """Get a URL, or post JSON to it, without any proxy and with the API's key; return the text of the answer."""
    place = urlsplit(url)
    data = None if content is None else json.dumps(content).encode()
    connection = http.client.HTTPConnection(place.netloc, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json", **authorization(key)}
        connection.request("GET" if data is None else "POST", place.path, data, headers)
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise CommandExecutionError(f"{url}: {error}") from error
    finally:
        connection.close()
    if answer.status >= 400:
        raise CommandExecutionError(f"{url}: {answer.status} {text[:300]}")
    return text


def authorization(key: str | None) -> dict[str, str]:
    """Return the header by which a request brings the API's key; none without one."""
    return {"Authorization": f"Bearer {key}"} if key else {}
