"""The texts of a request: their limits, how they are read, and the adapters that the prompt names."""

from collections.abc import Sequence

from deployments.engine.model_source import ModelInfo
from deployments.engine.prompt_adapters import TAG, adapters_in, without_adapters
from deployments.engine.prompt_syntax import problem
from deployments.engine.prompt_text import Reading, Syntax
from serve.config.limits import DefaultsConfig, Limits
from serve.wanted import Wanted, WantedAdapter


def check_texts(wanted: Wanted, limits: Limits) -> None:
    """Raises InvalidRequestError if one is too long, or the prompt empty."""
    for name, text in (("prompt", wanted.prompt), ("negative_prompt", wanted.negative_prompt or "")):
        wanted.check_at_most(name, len(text), limits.max_prompt_length, " characters")
    if wanted.needs_prompt and not wanted.prompt.strip():
        raise wanted.refusal("prompt", "is empty; say what the picture should show")


def syntax_of(wanted: Wanted, defaults: DefaultsConfig) -> Syntax:
    return wanted.prompt_syntax or defaults.prompt_syntax


def reading_of(wanted: Wanted, defaults: DefaultsConfig, limits: Limits, info: ModelInfo) -> Reading:
    """How the texts are read. Raises InvalidRequestError for syntax that cannot be done."""
    syntax = syntax_of(wanted, defaults)
    if syntax == "a1111":
        prompt = without_adapters(wanted.prompt)
        for name, text in (("prompt", prompt), ("negative_prompt", wanted.negative_prompt or "")):
            if found := problem(text):
                raise wanted.refusal(name, found)
    clip_skip = defaults.clip_skip if wanted.clip_skip is None else wanted.clip_skip
    if clip_skip is not None:
        wanted.check_at_most("clip_skip", clip_skip, info.max_clip_skip)
    is_chunked = (wanted.long_prompts or defaults.long_prompts) == "chunk"
    return Reading(syntax, limits.max_prompt_chunks if is_chunked else 1, clip_skip or None)


def adapters_of(wanted: Wanted, syntax: Syntax) -> Sequence[WantedAdapter]:
    """All adapters that a request names. Raises InvalidRequestError for a tag that cannot be read."""
    if syntax != "a1111":
        return wanted.loras
    for tag in TAG.finditer(wanted.prompt):
        if "://" in tag[1]:
            raise wanted.refusal(
                "prompt",
                f"{tag[0][:60]!r} was given; a tag names an adapter of the server's folder, and URLs are "
                "named in `loras`",
            )
    try:
        named = adapters_in(wanted.prompt)
    except ValueError as error:
        raise wanted.refusal("prompt", str(error)) from error
    field = wanted.name("prompt")
    return (
        *wanted.loras,
        *(WantedAdapter(one.name, one.unet_scale, field, text_scale=one.text_scale) for one in named),
    )
