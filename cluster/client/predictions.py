"""The predictions of a server: created, asked after, followed, canceled."""

from collections.abc import Iterator, Mapping
from typing import Any

import httpx

TIMEOUT_S = 60.0
FINAL = ("succeeded", "failed", "canceled")


class ServerError(Exception):
    """What the server refused, in its words, or that it cannot be reached."""


class Predictions:
    """Those of one server. Every method raises ServerError. api_key: where the server has some"""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=TIMEOUT_S)

    def close(self) -> None:
        self._http.close()

    def model(self) -> str:
        """The id of the model that is served."""
        return str(self._ask("GET", "/v1/models").json()["data"][0]["id"])

    def create(
        self, model: str, given: Mapping[str, Any], webhook: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"version": model, "input": given}
        if webhook is not None:
            body["webhook"] = webhook
        headers = {} if key is None else {"idempotency-key": key}
        return _object(self._ask("POST", "/v1/predictions", json=body, headers=headers))

    def get(self, prediction_id: str) -> dict[str, Any]:
        return _object(self._ask("GET", f"/v1/predictions/{prediction_id}"))

    def cancel(self, prediction_id: str) -> dict[str, Any]:
        return _object(self._ask("POST", f"/v1/predictions/{prediction_id}/cancel"))

    def newest(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self._ask("GET", "/v1/predictions").json()["results"]
        return results

    def follow(self, prediction_id: str) -> Iterator[dict[str, Any]]:
        """The prediction whenever something has happened to it; the last one is final."""
        prediction = self.get(prediction_id)
        yield prediction
        try:
            url = f"{self._url}/v1/predictions/{prediction_id}/stream"
            with self._http.stream("GET", url, headers=self._headers) as events:
                for line in events.iter_lines():
                    if line.startswith("event:"):
                        prediction = self.get(prediction_id)
                        yield prediction
        except httpx.HTTPError as error:
            raise ServerError(f"{self._url}: the stream has ended: {error}") from error

    def download(self, url: str) -> bytes:
        # Without the key: the URL is all that it takes, and may be another server's.
        return self._send("GET", url).content

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **options: Any
    ) -> httpx.Response:
        return self._send(method, self._url + path, headers=self._headers | dict(headers or {}), **options)

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, follow_redirects=True, **options)
        except httpx.HTTPError as error:
            raise ServerError(f"{url} cannot be reached: {error}") from error
        if response.is_error:
            raise ServerError(_detail(response))
        return response


def _object(response: httpx.Response) -> dict[str, Any]:
    answer: dict[str, Any] = response.json()
    return answer


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return f"{response.url} answered {response.status_code}: {response.text[:200]}"
