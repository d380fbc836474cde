"""Follow one request, of one prompt or several, from tokens to text."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from genai_server.answers import Usage
from genai_server.engine import Engine
from genai_server.messages import Sampling
from genai_server.text import Decode, Detokenizer, StopStrings


@dataclass(frozen=True)
class Piece:
    """Text of one choice that became certain with a step; `tokens` were generated for it, `reason` ends it."""

    index: int
    text: str
    tokens: int
    reason: str | None


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens, and the most to generate."""

    tokens: tuple[int, ...]
    max_tokens: int


class Generation:
    """The text of one request as it comes."""

    def __init__(
        self, engine: Engine, decode: Decode, prompts: Sequence[Prompt], sampling: Sampling, stops: Sequence[str]
    ) -> None:
        self._engine = engine
        self._decode = decode
        self._prompts = prompts
        self._sampling = sampling
        self._stops = stops
        self._generated = 0

    def usage(self) -> Usage:
        """Return the tokens so far."""
        return Usage(sum(len(prompt.tokens) for prompt in self._prompts), self._generated)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield pieces of all choices as they come; closing it cancels what runs. Raises `EngineError`."""
        if len(self._prompts) == 1:
            async with contextlib.aclosing(self._choice(0, self._prompts[0])) as pieces:
                async for piece in pieces:
                    yield piece
            return
        news: asyncio.Queue[Piece | BaseException | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._forward(index, prompt, news)) for index, prompt in enumerate(self._prompts)]
        try:
            open_choices = len(tasks)
            while open_choices:
                found = await news.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    open_choices -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, index: int, prompt: Prompt, news: "asyncio.Queue[Piece | BaseException | None]") -> None:
        try:
            async with contextlib.aclosing(self._choice(index, prompt)) as pieces:
                async for piece in pieces:
                    news.put_nowait(piece)
            news.put_nowait(None)
        except Exception as error:
            news.put_nowait(error)

    async def _choice(self, index: int, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        text, stop = Detokenizer(self._decode), StopStrings(self._stops)
        sampling = replace(self._sampling, max_tokens=prompt.max_tokens)
        news = self._engine.generate(prompt.tokens, sampling, lambda: stop.found is not None)
        async with contextlib.aclosing(news):
            async for progress in news:
                self._generated += len(progress.tokens)
                found, reason = stop.add(text.add(progress.tokens)), progress.finish_reason
                if reason is not None and stop.found is None:
                    found += stop.add(text.rest())
                    found += stop.rest() if stop.found is None else ""
                if stop.found is not None:
                    reason = "stop"
                yield Piece(index, found, len(progress.tokens), reason)
                if reason is not None:
                    return
