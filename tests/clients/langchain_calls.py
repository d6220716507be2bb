"""LangChain's wrapper of OpenAI's images, and its tool."""

from typing import Any

import openai
import pytest
from langchain_community.tools.openai_dalle_image_generation import OpenAIDALLEImageGenerationTool
from langchain_community.utilities.dalle_image_generator import DallEAPIWrapper
from pictures import PROMPT, fetched, size_of


def wrapper(url: str, **given: Any) -> DallEAPIWrapper:
    return DallEAPIWrapper(base_url=f"{url}/v1", api_key="any", max_retries=0, **given)


@pytest.mark.parametrize(
    "given",
    [{}, {"model": "shapes"}, {"model": "dall-e-3", "quality": "hd"}, {"quality": "standard"}],
    ids=str,
)
def test_its_answer_is_the_pictures_url(url: str, given: dict[str, Any]) -> None:
    answer = wrapper(url, size="128x128", **given).run(PROMPT)
    assert size_of(fetched(answer)) == (128, 128)


def test_several_urls(url: str) -> None:
    answer = wrapper(url, size="256x256", n=2, separator=" ").run(PROMPT)
    assert [size_of(fetched(one)) for one in answer.split(" ")] == [(256, 256)] * 2


def test_its_tool(url: str) -> None:
    tool = OpenAIDALLEImageGenerationTool(api_wrapper=wrapper(url, size="128x128"))
    assert size_of(fetched(tool.invoke(PROMPT))) == (128, 128)


def test_the_size_that_it_asks_for_by_itself_is_beyond_the_embedded_models_limits(url: str) -> None:
    with pytest.raises(openai.BadRequestError, match=r"size: .*1024") as refusal:
        wrapper(url).run(PROMPT)
    assert refusal.value.param == "size"
