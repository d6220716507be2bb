"""Rehearsals: the configuration that they run, and the series that they make."""

from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from cluster.bench.answers import Answer, Kind
from cluster.bench.load import RequestOutcome
from cluster.bench.mix import PlannedRequest
from cluster.rehearsal.application import check_room, on_gpus, rehearsed
from cluster.rehearsal.catalog import with_models
from cluster.rehearsal.chart import chart
from cluster.rehearsal.options import RehearsalOptions, with_rehearsal_options
from cluster.rehearsal.rehearsal import Rehearsal
from cluster.rehearsal.series import series_of
from cluster.rehearsal.watch import Sighting
from serve.catalog_model import known_model
from serve.config.app import AppConfig
from serve.config.catalog_files import entry_files, read_entry
from serve.config.schema import ConfigError

MODEL = {"path": "cluster/devices/sdxl", "dtype": "bfloat16", "cost_model": "cluster/devices/h200-sdxl.json"}


def test_devices_are_simulated_and_nothing_of_the_real_jobs_is_touched() -> None:
    config = AppConfig.model_validate(
        {
            "model": MODEL | {"device": "cuda"},
            "denoiser": {"max_replicas": 16, "autoscaling": {"utilization": 0.5}},
            "jobs": {"database_url": "postgresql://jobs", "object_store_url": "s3://bucket"},
        }
    )
    changed = rehearsed(config, "a folder")
    assert changed.model.device == "simulated"
    assert changed.autoscaling_of("denoiser") == config.autoscaling_of("denoiser")
    assert (changed.num_gpus(), changed.denoiser.num_cpus) == (config.num_gpus(), 0)
    assert changed.num_gpus()["denoiser"] == 0.8
    assert (changed.jobs.database_url, changed.jobs.object_store_url) == (None, None)
    assert changed.jobs.data_folder == "a folder"


def test_what_has_no_gpus_gets_the_shares_that_it_would_have_on_real_ones() -> None:
    sections = {"encoder": {"min_replicas": 2}, "denoiser": {"num_gpus": 0}}
    config = AppConfig.model_validate({"model": MODEL | {"device": "simulated"}} | sections)
    assert on_gpus(config).num_gpus() == {"encoder": 0.02, "denoiser": 0.8, "decoder": 0.16}
    given = AppConfig.model_validate({"model": MODEL, "denoiser": {"num_gpus": 0.5}})
    assert on_gpus(given) == given


@pytest.mark.parametrize(
    ("decoder_gpus", "nodes", "message"),
    [
        (
            0.2,
            [4, 2],
            r"need 6\.6 GPUs \(encoder 0\.2, denoiser 6, decoder 0\.4\) at the start, and there are 6",
        ),
        (2, [1] * 11, r"decoder\.num_gpus: 2 is more than a node has, 1"),
    ],
)
def test_what_would_wait_for_gpus_for_ever_is_refused(
    decoder_gpus: float, nodes: list[int], message: str
) -> None:
    shares = (("encoder", 0.1, 2), ("denoiser", 1, 6), ("decoder", decoder_gpus, 2))
    stages = {
        name: {"num_gpus": num_gpus, "min_replicas": replicas, "max_replicas": 9}
        for name, num_gpus, replicas in shares
    }
    config = AppConfig.model_validate({"model": MODEL | {"device": "simulated"}} | stages)
    check_room(config, [8, 3])
    with pytest.raises(ConfigError, match=message):
        check_room(config, nodes)


def read_options(arguments: Sequence[str]) -> RehearsalOptions:
    """Parses options. Raises click.BadParameter."""
    command = click.command(with_rehearsal_options(lambda options: options))
    options = command.main(arguments, standalone_mode=False)
    assert isinstance(options, RehearsalOptions)
    return options


def test_a_folder_that_cannot_be_written_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(click.BadParameter) as refused:
        read_options(["config.yaml", "--rate", "1", "--output", str(tmp_path / "file" / "folder")])
    assert refused.value.param is not None
    assert refused.value.param.name == "output"


def test_nodes_have_all_the_gpus(tmp_path: Path) -> None:
    options = ["config.yaml", "--gpus", "11", "--gpus-per-node", "4", "--rate", "1"]
    options += ["--output", str(tmp_path)]
    assert read_options(options).nodes == [4, 4, 3]
    with pytest.raises(click.BadParameter, match="only one run can be rehearsed"):
        read_options(["config.yaml", "--rates", "1,2", "--output", str(tmp_path)])


def test_policies_are_compared_where_they_are_named(tmp_path: Path) -> None:
    options = ["config.yaml", "--rate", "1", "--output", str(tmp_path)]
    assert read_options(options).policies == ()
    assert read_options([*options, "--policies", "work", "requests"]).policies == ("work", "requests")


def test_a_trace_is_one_without_being_called_so(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,num_images,num_inference_steps\n0,1,20\n6,2,4\n")
    options = read_options(
        ["config.yaml", "--trace", str(trace), "--speed-up", "2", "--output", str(tmp_path)]
    )
    assert [request.due_s for request in options.planned] == pytest.approx([0, 3], abs=0.5)
    assert [request.num_inference_steps for request in options.planned] == [20, 4]
    assert options.settings["arrivals"] == "trace"


def asking_for(*models: str | None) -> list[PlannedRequest]:
    return [PlannedRequest(0.0, "a prompt", seed=1, model=model) for model in models]


def test_models_that_requests_name_get_a_catalog_for_the_rehearsal() -> None:
    config = AppConfig.model_validate({"model": MODEL | {"id": "sdxl", "aliases": ["xl"]}})
    with with_models(config, asking_for("xl", "a/b: c", "d", "d", None)) as served:
        folder = Path(str(served.catalog.folder))
        entries = [read_entry(file) for file in entry_files(folder)]
        assert [(entry.id, entry.aliases) for entry in entries] == [
            ("checkpoint-0001", ("d",)),
            ("checkpoint-0002", ("a/b: c",)),
        ]
        assert {entry.source for entry in entries} == {config.model.source().path}
        simulated = rehearsed(served, "a folder")
        models = [known_model(simulated, entry, folder) for entry in entries]
        digests = {model.ref.unet for model in models if model is not None}
        assert len(digests) == 2, "each takes its own room on a device"
    assert not folder.exists()


def test_a_catalog_that_there_is_stays_and_no_names_need_none() -> None:
    config = AppConfig.model_validate({"model": MODEL | {"id": "sdxl"}})
    with with_models(config, asking_for("sdxl", None)) as served:
        assert served is config
    own = AppConfig.model_validate({"model": MODEL, "catalog": {"folder": "models.d"}})
    with with_models(own, asking_for("a")) as served:
        assert served is own


def outcome(due_s: float, ended_s: float, kind: Kind = Kind.COMPLETED) -> RequestOutcome:
    request = PlannedRequest(due_s, "a prompt", seed=1, num_images=2)
    num_images = 2 if kind is Kind.COMPLETED else 0
    return RequestOutcome(request, due_s, Answer(kind, ended_s, num_images=num_images))


def test_what_was_seen_becomes_series(tmp_path: Path) -> None:
    """The run takes 40 s, so that each window is a second."""
    outcomes = [outcome(0.5, 2.5), outcome(1.5, 3.5), outcome(10.5, 10.6, Kind.BUSY), outcome(30.0, 40.0)]
    sightings = [
        Sighting(at_s, {"encoder": 0, "denoiser": denoisers, "decoder": 1})
        for at_s, denoisers in ((0.0, 1), (20.0, 3), (40.0, 3))
    ]
    rehearsal = Rehearsal(outcomes, sightings, {"encoder": 0.1, "denoiser": 0.8, "decoder": 0.2}, 4)
    assert rehearsal.gpu_seconds() == pytest.approx(20 * 1.0 + 20 * 2.6)
    series = series_of(rehearsal, lambda request: 5.0)
    assert list(series.at_s) == list(range(40))
    assert series.arrivals_per_s[:3] == [2.0, 2.0, 0.0]
    assert series.arrivals_per_s[10] == 2.0
    assert series.done_per_s[2] == series.done_per_s[3] == 2.0
    assert series.done_per_s[10] == 0.0
    # One request for half a second, then ...
    assert series.queue_s[:5] == pytest.approx([2.5, 7.5, 7.5, 2.5, 0.0])
    assert series.queue_s[10] == 0.0, "what was refused never waits"
    assert list(series.replicas["denoiser"]) == [1.0] * 20 + [3.0] * 20
    assert series.latency_p95_s[1] == pytest.approx(2.0)
    assert series.latency_p95_s[10] is None
    assert series.gpu_seconds[19] == pytest.approx(20.0)
    assert series.gpu_seconds[-1] == pytest.approx(rehearsal.gpu_seconds())
    chart("a rehearsal", {"one": series, "two": series}, tmp_path / "rehearsal.png")
    assert (tmp_path / "rehearsal.png").read_bytes().startswith(b"\x89PNG")


def test_replicas_that_wait_for_a_gpu_cost_nothing() -> None:
    sightings = [Sighting(at_s, {"denoiser": number}) for at_s, number in ((0.0, 1), (10.0, 5), (40.0, 5))]
    assert Rehearsal([], sightings, {"denoiser": 0.5}, 2).gpu_seconds() == 10 * 0.5 + 30 * 2


def test_a_load_of_which_nothing_completes_is_told_of_as_well() -> None:
    sightings = [Sighting(at_s, {"denoiser": 1}) for at_s in (0.0, 40.0)]
    rehearsal = Rehearsal([outcome(0.5, 0.6, Kind.BUSY)], sightings, {"denoiser": 1.0}, 1)
    series = series_of(rehearsal, lambda request: 5.0)
    assert series.arrivals_per_s[0] == 2.0
    assert set(series.done_per_s) == set(series.queue_s) == {0.0}
    assert set(series.latency_p50_s) == {None}
