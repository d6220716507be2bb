"""The models of a rehearsal whose requests name some."""

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from cluster.bench.mix import PlannedRequest
from serve.config.app import AppConfig


@contextmanager
def with_models(config: AppConfig, planned: Sequence[PlannedRequest]) -> Iterator[AppConfig]:
    """The configuration with a temporary catalog of the models that the requests name and it does not serve.

    Each of them is the configured model under another name, with weights of its own: so many checkpoints of
    one architecture. A configuration with a catalog, or a load without names, is left as it is.
    """
    own = {None, config.model.id, *config.model.aliases}
    counts = Counter(one.model for one in planned if one.model not in own)
    if not counts or config.catalog.folder is not None:
        yield config
        return
    with tempfile.TemporaryDirectory() as folder:
        for rank, (name, _) in enumerate(counts.most_common(), start=1):
            # A trace's names need not be ones that files and URLs can have; aliases can be any.
            entry = {"source": config.model.source().path, "aliases": [name]}
            Path(folder, f"checkpoint-{rank:04}.yaml").write_text(yaml.safe_dump(entry))
        catalog = config.catalog.model_copy(update={"folder": folder})
        yield config.model_copy(update={"catalog": catalog})
