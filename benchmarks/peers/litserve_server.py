"""LitServe with dynamic batching around the pipeline.

A worker takes the requests that came while its last batch ran, so it needs no long wait. `batch_timeout` is
above zero only because at zero an idle worker polls without pause. A batch is answered when the last of its
groups is done. It may be larger than a pipeline call, because that makes its groups larger: in a simulation
of this mix, 32 has more throughput than 8 or 16, and the latency of 16.

    python -m benchmarks.peers.litserve_server --port 8001 --threads 2
"""

import argparse
import signal
from collections.abc import Sequence
from typing import Any

import litserve
from PIL import Image

from benchmarks.peers.diffusers_pipeline import GroupedCalls
from benchmarks.peers.images_api import PATH, ImageRequest, answer, png, read_body

MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_S = 0.01


class StableDiffusion(litserve.LitAPI):
    def __init__(self) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_TIMEOUT_S, api_path=PATH)

    def setup(self, device: str) -> None:
        self._calls = GroupedCalls()

    def decode_request(self, request: dict[str, Any]) -> list[ImageRequest]:
        return read_body(request)

    def predict(self, batch: Sequence[Sequence[ImageRequest]]) -> list[list[Image.Image]]:
        images = iter(self._calls.generate([request for requests in batch for request in requests]))
        return [[next(images) for _ in requests] for requests in batch]

    def encode_response(self, images: Sequence[Image.Image]) -> dict[str, Any]:
        return answer(map(png, images))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    # LitServe ends its workers only on an interrupt.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = litserve.LitServer(
        StableDiffusion(), accelerator="cpu", workers_per_device=arguments.threads, timeout=False
    )
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
