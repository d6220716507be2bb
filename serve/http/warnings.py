"""Warnings to a client about parts of its request that it may have meant otherwise."""

from deployments.engine.prompt_text import literal_syntax
from serve.generation import GenerationRequest
from serve.wanted import shown


def syntax_warnings(request: GenerationRequest) -> list[str]:
    """A sentence for each text that contains commands of other programs."""
    if request.reading.syntax != "plain":
        return []
    texts = {"prompt": request.prompt, "negative_prompt": request.negative_prompt or ""}
    return [
        f"{field}: {shown(syntax)} was taken literally; weights like (word:1.4) and BREAK need "
        "prompt_syntax 'a1111', and <lora:name:1> has no meaning here."
        for field, text in texts.items()
        if (syntax := literal_syntax(text))
    ]
