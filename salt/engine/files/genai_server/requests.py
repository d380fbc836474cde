"""Read a request's body, in OpenAI's form; what this server cannot do is refused by name, never passed over."""

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from genai_server.messages import Sampling

# OpenAI's default of /v1/completions.
DEFAULT_TOKENS = 16
# Of no effect on what is generated here.
_HARMLESS = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"}
)
# Fields that are known and not served -> values that ask for nothing.
_IDLE: Mapping[str, tuple[object, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "use_beam_search": (None, False),
    "min_p": (None, 0, 0.0),
    "length_penalty": (None, 1, 1.0),
    "skip_special_tokens": (None, True),
    "priority": (None, 0),
}

Probability = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Token = Annotated[int, Field(strict=True, ge=0)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class RequestError(Exception):
    """A request that cannot be served: the sentence, the field, the HTTP status."""

    def __init__(self, text: str, field: str | None = None, status: int = 400) -> None:
        super().__init__(text)
        self.field = field
        self.status = status


class StreamOptions(BaseModel):
    """Extras of a stream beside the text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class Body(BaseModel):
    """Fields of both kinds of requests."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

    model: str | None = None
    max_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None
    min_tokens: Annotated[int, Field(strict=True, ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(strict=True, ge=-1)] | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None

    def stops(self) -> list[str]:
        """Return the strings that end the text."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or [])

    def sampling(self, max_tokens: int) -> Sampling:
        """Return how tokens are chosen; OpenAI's defaults where nothing is written."""
        return Sampling(
            max_tokens=max_tokens,
            min_tokens=min(self.min_tokens, max_tokens),
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            # 0 and -1 are other servers' ways to say all.
            top_k=self.top_k if self.top_k and self.top_k > 0 else None,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
        )


class CompletionBody(Body):
    """A request to /v1/completions."""

    prompt: str | list[str] | list[Token] | list[list[Token]]

    def prompts(self) -> list[str | list[int]]:
        """Return the prompts, one or more: text, or tokens."""
        written = self.prompt
        if isinstance(written, str):
            return [written]
        if written and isinstance(written[0], int):
            return [[token for token in written if isinstance(token, int)]]
        return [item for item in written if not isinstance(item, int)]


class Part(BaseModel):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    def text(self) -> str:
        """Return its content as text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(Body):
    """A request to /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(strict=True, ge=1)] | None = None


Read = TypeVar("Read", bound=Body)


def read_body(kind: type[Read], document: object, model: str) -> Read:
    """Return a request's body.

    Raises
    ------
    RequestError
        With the field, what was seen and what was expected.
    """
    if not isinstance(document, dict):
        raise RequestError(f"the body is a {type(document).__name__}; expected a JSON object")
    try:
        body = kind.model_validate(document)
    except ValidationError as error:
        raise _named(error) from error
    for field, value in (body.model_extra or {}).items():
        if field in _IDLE:
            if value not in _IDLE[field]:
                raise RequestError(f"{field} is {_short(value)}: this server does not do that; leave it out", field)
        elif field not in _HARMLESS and value is not None:
            raise RequestError(f"{field}: no such field here; expected one of OpenAI's that this server knows", field)
    if body.model is not None and body.model != model:
        raise RequestError(f"the model {body.model} is not here; expected {model}", "model", 404)
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options without stream; expected stream: true", "stream_options")
    if len(body.stops()) > 16 or any(not stop for stop in body.stops()):
        raise RequestError("stop: expected up to 16 strings, none of them empty", "stop")
    return body


def _named(error: ValidationError) -> RequestError:
    # Of a field with several forms each has its own complaint: the first names the field all the same.
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"][:1]) or None
    seen = "" if first["type"] == "missing" else f" (seen: {_short(first['input'])})"
    message = first["msg"][:1].lower() + first["msg"][1:]
    return RequestError(f"{field or 'the body'}: {message}{seen}", field)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
