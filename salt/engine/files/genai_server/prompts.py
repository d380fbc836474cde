"""Make tokens of what a request asks with, and check that they fit."""

from collections.abc import Sequence
from typing import Protocol

from genai_server.generation import Prompt
from genai_server.requests import DEFAULT_TOKENS, ChatBody, CompletionBody, RequestError
from genai_server.settings import Settings


class Tokenizer(Protocol):
    """The model's tokenizer; a chat without a template gives a `RequestError`."""

    def encode(self, text: str, special: bool) -> tuple[int, ...]:
        """Return the tokens of a text, with the model's special ones at its ends or without."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, special ones left out."""

    def chat(self, messages: Sequence[tuple[str, str]]) -> str:
        """Return the text of a chat's (role, content), up to where the assistant goes on."""


class OpenVinoTokenizer:
    """openvino_genai.Tokenizer."""

    def __init__(self, settings: Settings) -> None:
        import openvino_genai

        self._tokenizer = openvino_genai.Tokenizer(settings.model_folder)
        if settings.chat_template_file:
            with open(settings.chat_template_file, encoding="utf-8") as file:
                self._tokenizer.set_chat_template(file.read())

    def encode(self, text: str, special: bool) -> tuple[int, ...]:
        found = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        return tuple(int(token) for token in found[0]) if found.size else ()

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def chat(self, messages: Sequence[tuple[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            raise RequestError("the model has no chat template; next: /v1/completions, or start with --chat-template")
        history = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(self._tokenizer.apply_chat_template(history, add_generation_prompt=True))
        except RuntimeError as error:
            raise RequestError(f"the chat template does not take these messages: {error}", "messages") from error


def completion_prompts(body: CompletionBody, tokenizer: Tokenizer, settings: Settings) -> list[Prompt]:
    """Return the prompts' tokens; raise `RequestError` for one that does not fit."""
    prompts = body.prompts()
    if not 0 < len(prompts) <= settings.max_num_seqs:
        raise RequestError(f"prompt: {len(prompts)} of them; expected 1 to {settings.max_num_seqs}", "prompt")
    found = []
    for prompt in prompts:
        tokens = tokenizer.encode(prompt, True) if isinstance(prompt, str) else tuple(prompt)
        outside = [token for token in tokens if token >= settings.vocabulary_size]
        if outside:
            raise RequestError(
                f"prompt: token {outside[0]}; expected 0 to {settings.vocabulary_size - 1}, the model's vocabulary",
                "prompt",
            )
        wanted = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        found.append(Prompt(tokens, _fitting(len(tokens), wanted, settings, "prompt")))
    return found


def chat_prompt(body: ChatBody, tokenizer: Tokenizer, settings: Settings) -> Prompt:
    """Return a chat's tokens; raise `RequestError` for one that does not fit."""
    text = tokenizer.chat([(message.role, message.text()) for message in body.messages])
    # A template writes the special tokens itself.
    tokens = tokenizer.encode(text, False)
    wanted = body.max_completion_tokens or body.max_tokens
    if wanted is None:
        wanted = max(1, min(settings.max_model_len, settings.cache_tokens) - len(tokens))
    return Prompt(tokens, _fitting(len(tokens), wanted, settings, "messages"))


def _fitting(prompt: int, wanted: int, settings: Settings, field: str) -> int:
    if not prompt:
        raise RequestError(f"{field}: no token; expected one or more", field)
    for most, what in ((settings.max_model_len, "the model's length"), (settings.cache_tokens, "the KV cache")):
        if prompt + wanted > most:
            raise RequestError(
                f"{prompt} tokens of {field} and max_tokens {wanted} make {prompt + wanted}; expected {most} or fewer, "
                f"{what}",
                field if prompt >= most else "max_tokens",
            )
    return wanted
