"""The ingress deployment, which holds the stages' handles and mounts the HTTP routes."""

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from deployments.engine.model_source import ModelInfo, ModelRef
from serve.calls.fleet import Fleet
from serve.calls.pipeline import Pipeline
from serve.calls.telemetry import Telemetry
from serve.config.app import AppConfig
from serve.http.app import build_http_app
from serve.large_blocks import return_large_blocks


@serve.ingress(None)
class Ingress:
    def __init__(
        self,
        config: AppConfig,
        info: ModelInfo,
        model: ModelRef,
        encoder: DeploymentHandle,
        denoiser: DeploymentHandle,
        decoder: DeploymentHandle,
        runner: DeploymentHandle,
    ) -> None:
        """config: with section `jobs` resolved; runner: never called, only counted, but bound, as Serve
        deploys nothing else"""
        return_large_blocks()
        self._config = config
        self._info = info
        self._pipeline = Pipeline(encoder, denoiser, decoder, model, Telemetry())
        here = serve.get_replica_context()
        stages = {"encoder": encoder, "denoiser": denoiser, "decoder": decoder, "runner": runner}
        names = {stage: handle.deployment_name for stage, handle in stages.items()}
        self._fleet = Fleet(here.app_name, names, here.deployment, here.replica_id.unique_id)

    def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Serve once the replica is constructed."""
        return build_http_app(self._config, self._info, self._pipeline, self._fleet)
