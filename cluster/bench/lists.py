"""Asks servers what they list."""

import aiohttp

_ANSWER_TIMEOUT_S = 30.0


async def asked(url: str, api_key: str | None) -> object:
    """The JSON of an answer; None if there is none: the load itself shows what is wrong."""
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    timeout = aiohttp.ClientTimeout(total=_ANSWER_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, headers=headers) as response,
        ):
            return await response.json(content_type=None) if response.status == 200 else None
    except (aiohttp.ClientError, OSError, ValueError, TimeoutError):
        return None
