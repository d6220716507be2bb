"""Ingests one model in a process of its own: `python -m deployments.ingestion`.

It reads one JSON object from stdin: {"model": {...}, "cache": folder, "dtype": name}. It writes JSON lines to
stdout: {"progress": share, "what": text}, and at the end {"folder": path} or {"error": message}.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from deployments.ingestion.ingest import ingest
from deployments.ingestion.model_entry import IngestionError, ModelToIngest

_NICENESS = 10
_PERIOD_S = 0.2  # between two lines of progress


def main() -> int:
    """The exit status: 1 if the model cannot be ingested."""
    signal.signal(signal.SIGTERM, _leave)
    os.nice(_NICENESS)  # it shares its machine with servers
    job = json.load(sys.stdin)
    output = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no line of ours

    def write(**line: Any) -> None:
        print(json.dumps(line), file=output, flush=True)

    last_s = 0.0

    def progress(what: str, share: float) -> None:
        nonlocal last_s
        if share == 1.0 or time.monotonic() - last_s >= _PERIOD_S:
            last_s = time.monotonic()
            write(progress=round(share, 4), what=what)

    try:
        model = ModelToIngest(**job["model"])
        folder = ingest(model, Path(job["cache"]), job.get("dtype", "auto"), progress)
    except IngestionError as error:
        write(error=str(error))
        return 1
    except Exception as error:  # the reader gets a message in any case
        logging.exception("the ingestion failed")
        write(
            error=f"{job.get('model', {}).get('source')} cannot be ingested: {type(error).__name__}: {error}"
        )
        return 1
    write(folder=str(folder))
    return 0


def _leave(signum: int, frame: object) -> NoReturn:
    """Leaves through the `finally` clauses, which remove what is not finished."""
    sys.exit(128 + signum)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    sys.exit(main())
