"""Answer HTTP: OpenAI's completions and chat, the models there are, metrics and health."""

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from genai_server import answers
from genai_server.answers import DONE, Form
from genai_server.engine import Engine, EngineError
from genai_server.generation import Generation, Prompt
from genai_server.metrics import Metrics
from genai_server.prompts import Tokenizer, chat_prompt, completion_prompts
from genai_server.requests import Body, ChatBody, CompletionBody, RequestError, read_body
from genai_server.settings import Settings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A prompt of a million tokens is shorter.
MOST_BODY_BYTES = 32 * 2**20
_HUNG_UP = 499


def application(settings: Settings, engine: Engine, tokenizer: Tokenizer, metrics: Metrics) -> FastAPI:
    """Return the server's application; the engine is started with it and ended with it."""
    return _Server(settings, engine, tokenizer, metrics).application()


def api_key(path: str | None) -> str | None:
    """Return the key that a file's first line holds; None without a file."""
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        key = file.readline().strip()
    if not key:
        raise ValueError(f"{path}: its first line is empty; expected the API key")
    return key


class _Server:
    def __init__(self, settings: Settings, engine: Engine, tokenizer: Tokenizer, metrics: Metrics) -> None:
        self.settings, self.engine, self.tokenizer, self.metrics = settings, engine, tokenizer, metrics
        self.key = api_key(settings.api_key_file)

    def application(self) -> FastAPI:
        @contextlib.asynccontextmanager
        async def life(_: FastAPI) -> AsyncIterator[None]:
            self.engine.start()
            try:
                yield
            finally:
                await asyncio.to_thread(self.engine.end)

        made = FastAPI(title="OpenVINO GenAI", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
        made.add_api_route("/v1/models", self.models, methods=["GET"])
        made.add_api_route("/v1/completions", self.completions, methods=["POST"])
        made.add_api_route("/v1/chat/completions", self.chat, methods=["POST"])
        made.add_api_route("/health", self.health, methods=["GET"])
        made.add_api_route("/metrics", self.read_metrics, methods=["GET"])
        made.add_exception_handler(RequestError, _refuse)
        made.add_exception_handler(EngineError, _fail)
        made.middleware("http")(self.guard)
        return made

    async def guard(self, request: Request, proceed: Callable[[Request], Any]) -> Response:
        """Let requests to the API pass that bring the key."""
        if self.key is not None and request.url.path.startswith("/v1/"):
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), self.key.encode()):
                return JSONResponse(answers.error("the API key is missing or not the right one", 401), 401)
        found: Response = await proceed(request)
        return found

    async def models(self) -> dict[str, Any]:
        """Return the one model there is."""
        return {
            "object": "list",
            "data": [
                {
                    "id": self.settings.model_name,
                    "object": "model",
                    "owned_by": "openvino-genai",
                    "root": self.settings.model_folder,
                    "max_model_len": self.settings.max_model_len,
                }
            ],
        }

    async def completions(self, request: Request) -> Response:
        """Go on with a text."""
        body = read_body(CompletionBody, await _document(request), self.settings.model_name)
        prompts = await asyncio.to_thread(completion_prompts, body, self.tokenizer, self.settings)
        return await self.answer(request, body, prompts, chat=False)

    async def chat(self, request: Request) -> Response:
        """Answer the last message of a chat."""
        body = read_body(ChatBody, await _document(request), self.settings.model_name)
        prompt = await asyncio.to_thread(chat_prompt, body, self.tokenizer, self.settings)
        return await self.answer(request, body, [prompt], chat=True)

    async def answer(self, request: Request, body: Body, prompts: Sequence[Prompt], chat: bool) -> Response:
        """Return the answer, or the stream of it."""
        if not self.engine.ready.is_set() or self.engine.broken is not None:
            raise EngineError(self.engine.health() or "the model is being loaded")
        generation = Generation(
            self.engine,
            self.tokenizer.decode,
            prompts,
            body.sampling(max(prompt.max_tokens for prompt in prompts)),
            body.stops(),
        )
        form = Form(self.settings.model_name, chat)
        if body.stream:
            return StreamingResponse(_stream(generation, form, body), media_type="text/event-stream")
        whole = asyncio.create_task(_whole(generation))
        gone = asyncio.create_task(_hung_up(request))
        try:
            await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                return Response(status_code=_HUNG_UP)
            return JSONResponse(form.whole(whole.result(), generation.usage()))
        finally:
            for task in (whole, gone):
                task.cancel()
            await asyncio.gather(whole, gone, return_exceptions=True)

    async def health(self) -> Response:
        """Say whether it can serve."""
        reason = self.engine.health()
        return PlainTextResponse("ok\n" if reason is None else f"{reason}\n", 200 if reason is None else 503)

    async def read_metrics(self) -> Response:
        """Return the metrics."""
        return Response(self.metrics.text(), media_type=METRICS_TYPE)


async def _document(request: Request) -> object:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise RequestError(f"the body is larger than {MOST_BODY_BYTES} bytes", None, 413)
    try:
        return json.loads(body)
    except ValueError as error:
        raise RequestError(f"the body is no JSON: {error}") from error


async def _whole(generation: Generation) -> dict[int, tuple[str, str]]:
    texts: dict[int, list[str]] = {}
    reasons: dict[int, str] = {}
    async with contextlib.aclosing(generation.pieces()) as pieces:
        async for piece in pieces:
            texts.setdefault(piece.index, []).append(piece.text)
            if piece.reason is not None:
                reasons[piece.index] = piece.reason
    return {index: ("".join(parts), reasons[index]) for index, parts in texts.items()}


async def _stream(generation: Generation, form: Form, body: Body) -> AsyncGenerator[str, None]:
    options = body.stream_options
    running = bool(options and options.continuous_usage_stats)
    begun: set[int] = set()
    try:
        async with contextlib.aclosing(generation.pieces()) as pieces:
            async for piece in pieces:
                usage = generation.usage() if running else None
                yield form.part(piece.index, piece.text, piece.reason, usage, first=piece.index not in begun)
                begun.add(piece.index)
    except EngineError as error:
        # The status has gone out already.
        yield answers.event(answers.error(str(error), 500))
    else:
        if options and options.include_usage:
            yield form.usage(generation.usage())
    yield DONE


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refuse(_: Request, error: Exception) -> Response:
    status, field = (error.status, error.field) if isinstance(error, RequestError) else (400, None)
    return JSONResponse(answers.error(str(error), status, field), status)


async def _fail(_: Request, error: Exception) -> Response:
    return JSONResponse(answers.error(str(error), 503), 503)
