"""An application of as many deployments as Midstep's that only answer "ok": what Ray takes for itself.

    midstep run benchmarks/empty_application.yaml  in one terminal, then
    python -m benchmarks.idle PID                  in another

Its figure is to be subtracted from that of the whole application, taken just before or after it.
"""

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle


class Answer:
    def __init__(self, *others: DeploymentHandle) -> None:
        """others: never called, but deployed, as they are bound"""

    async def __call__(self) -> str:
        return "ok"


def _deployed(name: str, *others: Application) -> Application:
    return serve.deployment(Answer, name=name, ray_actor_options={"num_cpus": 0.1}).bind(*others)


app = _deployed("Ingress", *map(_deployed, ("PromptEncoder", "Denoiser", "VaeDecoder", "Runner")))
