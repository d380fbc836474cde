"""Write answers in OpenAI's form: whole ones, and the events of a stream."""

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class Usage:
    """Tokens of a request."""

    prompt: int
    completion: int

    def as_dict(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(frozen=True)
class Form:
    """The form of the answers to one request."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, texts: Mapping[int, tuple[str, str]], usage: Usage) -> dict[str, Any]:
        """Return a whole answer: index -> (text, finish reason)."""
        choices = [
            {"index": index, "logprobs": None, "finish_reason": reason}
            | ({"message": {"role": "assistant", "content": text}} if self.chat else {"text": text})
            for index, (text, reason) in sorted(texts.items())
        ]
        return {**self._head("chat.completion" if self.chat else "text_completion"), "choices": choices} | {
            "usage": usage.as_dict()
        }

    def part(self, index: int, text: str, reason: str | None, usage: Usage | None = None, first: bool = False) -> str:
        """Return an event with a part of the text."""
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if self.chat:
            choice["delta"] = {"role": "assistant", "content": text} if first else {"content": text}
        else:
            choice["text"] = text
        return self._event([choice], usage)

    def usage(self, usage: Usage) -> str:
        """Return the event that closes a stream whose client asked for usage."""
        return self._event([], usage)

    def _event(self, choices: list[dict[str, Any]], usage: Usage | None) -> str:
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        counted = {} if usage is None else {"usage": usage.as_dict()}
        return event({**head, "choices": choices, **counted})

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def event(document: Mapping[str, Any]) -> str:
    """Return a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False, separators=(',', ':'))}\n\n"


def error(text: str, status: int, field: str | None = None) -> dict[str, Any]:
    """Return an error's body."""
    kinds = {401: "authentication_error", 404: "not_found_error"}
    kind = "server_error" if status >= 500 else kinds.get(status, "invalid_request_error")
    return {"error": {"message": text, "type": kind, "param": field, "code": status}}
