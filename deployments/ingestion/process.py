"""Runs an ingestion in a process of its own, whose memory and libraries are then not the server's."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from deployments.ingestion.model_entry import IngestionError, ModelToIngest

_ROOT = Path(__file__).parents[2]  # what `deployments` is imported from
_GRACE_S = 5.0  # after which a process that does not leave is killed
_MAX_LINE_BYTES = 1 << 20
_LAST_LINES = 3  # of the log, in the message about a process that died
_TAIL_BYTES = 4096  # of the log, in which those lines are


async def ingest_in_process(
    model: ModelToIngest,
    cache: Path,
    dtype: str = "auto",
    on_progress: Callable[[str, float], None] = lambda what, share: None,
) -> Path:
    """As `ingest`, in another process. It ends if this is cancelled. Raises IngestionError."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deployments.ingestion"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        env=_environment(),
        limit=_MAX_LINE_BYTES,
    )
    log = asyncio.create_task(_read_log(process))
    try:
        return await _follow(process, log, model, cache, dtype, on_progress)
    finally:
        await _end(process)
        log.cancel()


def _environment() -> dict[str, str]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return {**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths)}


async def _follow(
    process: Process,
    log: asyncio.Task[str],
    model: ModelToIngest,
    cache: Path,
    dtype: str,
    on_progress: Callable[[str, float], None],
) -> Path:
    assert process.stdin is not None
    assert process.stdout is not None
    job = {"model": asdict(model), "cache": str(cache), "dtype": dtype}
    with suppress(BrokenPipeError, ConnectionResetError):  # it died, and its end is told below
        process.stdin.write(json.dumps(job).encode())
        await process.stdin.drain()
        process.stdin.close()
    async for text in process.stdout:
        line = json.loads(text)
        if "folder" in line:
            return Path(line["folder"])
        if "error" in line:
            raise IngestionError(line["error"])
        on_progress(line["what"], line["progress"])
    status, last = await process.wait(), await log
    raise IngestionError(
        f"{model.source} cannot be ingested: its process ended with status {status}"
        + (f": {last}" if last else ". Perhaps there was too little memory")
    )


async def _read_log(process: Process) -> str:
    """The last lines of stderr, which is read so that the process never waits for it."""
    assert process.stderr is not None
    tail = b""
    while chunk := await process.stderr.read(1 << 16):  # a progress bar makes one line without an end
        tail = (tail + chunk)[-_TAIL_BYTES:]
    lines = (line.strip() for line in tail.decode(errors="replace").splitlines())
    return " | ".join([line for line in lines if line][-_LAST_LINES:])


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _GRACE_S)
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
