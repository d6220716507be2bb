"""The routes of the live status, with all of the application around them."""

import asyncio
import json
import re
from pathlib import Path

import httpx
from starlette.applications import Starlette

from serve.http.status import StatusRoutes
from tests.job_stores import in_loop
from tests.unit.test_authentication import ALICE, API_KEYS, by, serving
from tests.unit.test_live_status import Board, denoiser, request
from tests.unit.test_openapi import check, check_answer, document_of

STATUS = "/v1/status"


@in_loop
async def test_without_denoisers_the_status_is_what_the_document_says(tmp_path: Path) -> None:
    async with serving(tmp_path, API_KEYS) as client:
        document = await document_of(client)
        for path in (STATUS, "/status"):
            answer = await client.get(path, headers=by(ALICE))
            check_answer(document, STATUS, answer)
            status = answer.json()
            assert status["stages"]["runner"] == {"running": 1, "starting": 0, "stopping": 0}
            assert (status["object"], status["denoisers"], status["queue"]["images"]) == ("status", [], 0)
        head = await client.head(f"{STATUS}/stream", headers=by(ALICE))
        assert head.headers["content-type"].startswith("text/event-stream")


@in_loop
async def test_a_stream_has_the_whole_status_in_each_event(tmp_path: Path) -> None:
    async with serving(tmp_path, []) as client:
        document = await document_of(client)
    content = document["paths"][f"{STATUS}/stream"]["get"]["responses"]["200"]["content"]["text/event-stream"]
    [event] = content["schema"]["oneOf"]

    board = Board()
    board.denoisers.status = denoiser(requests=(request("a"), request("b", left_at=1.0, state="done")))

    async def change_and_go() -> None:
        await asyncio.sleep(0.2)
        board.denoisers.status = denoiser(forwards=1)
        await asyncio.sleep(0.8)
        board.fleet.is_leaving = True

    app = Starlette(routes=StatusRoutes(board.board).routes)
    going = asyncio.create_task(change_and_go())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://midstep") as client:
        answer = await client.get(f"{STATUS}/stream")
    await going
    sent = re.findall(r"event: (\S+)\r?\ndata: (.+)\r?\n", answer.text)
    assert [name for name, _ in sent] == ["status", "status"]
    for name, data in sent:
        check(document, event, {"event": name, "data": data})
        check(document, event["properties"]["data"]["contentSchema"], json.loads(data))
    requests = json.loads(sent[0][1])["denoisers"][0]["requests"]
    assert [one["state"] for one in requests] == ["waiting", "done"]
