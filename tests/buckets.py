"""A bucket for tests, on moto's S3 server in this process."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import httpx


@dataclass(frozen=True)
class Bucket:
    url: str
    options: Mapping[str, str]


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 (takes seconds)

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        httpx.put(f"{endpoint}/pictures").raise_for_status()
        credentials = {"access_key_id": "test", "secret_access_key": "test"}
        yield Bucket("s3://pictures", {"endpoint": endpoint, "region": "us-east-1", **credentials})
    finally:
        server.stop()
