"""Options that clients keep on the server, on both databases."""

import asyncio

from serve.jobs.client_options import ClientOptions
from serve.jobs.database import Database
from tests.job_stores import in_loop


@in_loop
async def test_each_client_has_its_own_options_and_they_last(url: str) -> None:
    database = Database(url)
    await database.open()
    options = ClientOptions(database)
    assert await options.of("alice") == {}
    await options.change("alice", {})
    await options.change("alice", {"sd_model_checkpoint": "shapes", "jpeg_quality": 80})
    await options.change("", {"sd_model_checkpoint": "outlines"})
    await asyncio.gather(
        options.change("alice", {"sd_model_checkpoint": "outlines"}),
        options.change("alice", {"send_seed": False}),
    )
    await database.close()
    database = Database(url)
    await database.open()
    kept = await ClientOptions(database).of("alice")
    assert kept == {"sd_model_checkpoint": "outlines", "jpeg_quality": 80, "send_seed": False}
    assert await ClientOptions(database).of("") == {"sd_model_checkpoint": "outlines"}
    assert await ClientOptions(database).of("bob") == {}
    await database.close()
