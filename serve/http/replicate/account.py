"""Further routes of Replicate's clients: the account of a key, the webhook secret, the hardware."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serve.clients import EVERYBODY
from serve.config.app import AppConfig
from serve.errors import ForbiddenError
from serve.http.authentication import client_of
from serve.http.operations import described
from serve.http.replicate import operations
from serve.http.replicate.answers import Account, Hardware, WebhookSecret

_DEVICES = {
    "auto": "CPU, or a GPU where there is one",
    "cpu": "CPU",
    "cuda": "NVIDIA GPU",
    "simulated": "Simulated device",
}


class AccountRoutes:
    """The handlers of the routes. config: with its section `jobs` resolved"""

    def __init__(self, config: AppConfig) -> None:
        self._config = config

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/account", self._account),
            Route("/v1/webhooks/default/secret", self._webhook_secret),
            Route("/v1/hardware", self._hardware),
        ]

    @described(operations.ACCOUNT)
    async def _account(self, request: Request) -> Response:
        name = username(client_of(request).name)
        account: Account = {
            "type": "user",
            "username": name,
            "name": name,
            "github_url": None,
            "avatar_url": None,
        }
        return JSONResponse(account)

    @described(operations.WEBHOOK_SECRET)
    async def _webhook_secret(self, request: Request) -> Response:
        """The secret that signs webhooks, only for clients with a key. Raises ForbiddenError."""
        if client_of(request) == EVERYBODY:
            raise ForbiddenError(
                "The secret that webhooks are signed with is told only where `api_keys` are configured. "
                "It is the first of `jobs.webhook_secrets`, or else in the file `webhook_secret` in the "
                "server's data folder (`jobs.data_folder`)."
            )
        secret: WebhookSecret = {"key": self._config.jobs.webhook_secrets[0]}
        return JSONResponse(secret)

    @described(operations.HARDWARE)
    async def _hardware(self, _: Request) -> Response:
        device = self._config.model.device
        hardware: Hardware = {"name": _DEVICES[device], "sku": device}
        return JSONResponse([hardware])


def username(client: str) -> str:
    """A client's name in the form of an account, also without API keys."""
    return client or "anonymous"
