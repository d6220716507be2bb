"""Warnings to a client about parts of its request that it may have meant otherwise."""

from collections.abc import Sequence

from deployments.engine.prompt_text import literal_syntax
from serve.generation import GenerationRequest, PromptEncoded
from serve.wanted import shown


def answer_warnings(request: GenerationRequest, encoded: PromptEncoded, hints: Sequence[str]) -> list[str]:
    """Says what was done otherwise than asked. hints: those that change nothing"""
    texts = {"prompt": encoded.tokens, "negative_prompt": encoded.negative_tokens}
    sentences = [
        f"{field}: has {tokens.given} tokens, of which the model reads the first {tokens.read}; "
        "the end was cut off."
        for field, tokens in texts.items()
        if tokens.given > tokens.read
    ]
    return [*sentences, *request_warnings(request), *hints]


def request_warnings(request: GenerationRequest) -> list[str]:
    """What was noticed when the request was accepted, and a sentence for each text that contains commands of
    other programs."""
    if request.reading.syntax != "plain":
        return list(request.warnings)
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    return list(request.warnings) + [
        f"{field}: {shown(syntax)} was taken literally; weights like (word:1.4), BREAK and <lora:name:1> "
        "need prompt_syntax 'a1111'."
        for field, text in texts.items()
        if (syntax := literal_syntax(text))
    ]
