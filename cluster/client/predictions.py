"""The predictions of a server: create, get, follow, cancel."""

import ipaddress
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

TIMEOUT_S = 60.0
FINAL = ("succeeded", "failed", "canceled")
# Reconnections of a broken stream without news in between; enough for a replica to be replaced.
MAX_RECONNECTIONS = 60
RECONNECTION_PAUSE_S = 1.0


class ServerError(Exception):
    """The server's refusal, in its words, or the fact that it cannot be reached."""


class UnavailableError(ServerError):
    """The server cannot be reached or has a fault now. That may pass."""


class Predictions:
    """The predictions of one server. Every method raises ServerError. api_key: for a server that needs one"""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(timeout=TIMEOUT_S, mounts=_without_proxy(self._url))

    def close(self) -> None:
        self._http.close()

    def model(self) -> str:
        """The id of the served model."""
        return str(self._answer("GET", "/v1/models", "data")[0]["id"])

    def create(
        self, model: str, given: Mapping[str, Any], webhook: str | None = None, key: str | None = None
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"version": model, "input": given}
        if webhook is not None:
            body["webhook"] = webhook
        headers = {} if key is None else {"idempotency-key": key}
        return self._prediction("POST", "/v1/predictions", json=body, headers=headers)

    def upload(self, name: str, media_type: str, data: bytes) -> str:
        """Uploads a file and returns a URL that gives its bytes to anyone."""
        files = {"content": (name, data, media_type)}
        return str(self._answer("POST", "/v1/files", "urls", files=files)["get"])

    def get(self, prediction_id: str) -> dict[str, Any]:
        return self._prediction("GET", f"/v1/predictions/{prediction_id}")

    def cancel(self, prediction_id: str) -> dict[str, Any]:
        return self._prediction("POST", f"/v1/predictions/{prediction_id}/cancel")

    def delete(self, prediction_id: str) -> None:
        self._send("DELETE", f"{self._url}/v1/predictions/{prediction_id}", headers=self._headers)

    def newest(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = self._answer("GET", "/v1/predictions", "results")
        return results

    def follow(self, prediction_id: str) -> Iterator[dict[str, Any]]:
        """The prediction after every change; the last one is final.

        Jobs outlive the server's replicas: if the connection breaks, a new one continues from there.
        """
        prediction = self.get(prediction_id)
        yield prediction
        event_id, num_broken = "", 0
        while prediction["status"] not in FINAL:
            try:
                for news in self._event_ids(prediction_id, event_id):
                    prediction = self.get(prediction_id)
                    yield prediction
                    event_id, num_broken = news, 0
                    if prediction["status"] in FINAL:
                        break
            except UnavailableError:
                if num_broken == MAX_RECONNECTIONS:
                    raise
                num_broken += 1
                time.sleep(RECONNECTION_PAUSE_S)

    def _event_ids(self, prediction_id: str, last: str) -> Iterator[str]:
        """The ids of the events after `last`, or of all events. Then raises UnavailableError."""
        url = f"{self._url}/v1/predictions/{prediction_id}/stream"
        headers = self._headers | ({"last-event-id": last} if last else {})
        try:
            with self._http.stream("GET", url, headers=headers) as response:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                for line in response.iter_lines():
                    name, _, value = line.partition(":")
                    if name == "id":
                        yield value.strip()
        except httpx.HTTPError as error:
            raise UnavailableError(f"{self._url}: the stream has ended: {error}") from error
        raise UnavailableError(f"the stream of {prediction_id} ended before the job did; wait for it again")

    def download(self, url: str) -> bytes:
        # Without the key, because the URL is enough and may be another server's.
        return self._send("GET", url).content

    def _prediction(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        prediction: dict[str, Any] = self._answer(method, path, None, **options)
        return prediction

    def _answer(
        self,
        method: str,
        path: str,
        key: str | None,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Any:
        """The JSON object of an answer, or its value of that key."""
        url = self._url + path
        response = self._send(method, url, headers=self._headers | dict(headers or {}), **options)
        try:
            answer = response.json()
            return answer if key is None else answer[key]
        except (ValueError, KeyError, TypeError) as error:
            raise ServerError(f"{url} answered, but not as Midstep does: {response.text[:200]}") from error

    def _send(self, method: str, url: str, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, url, follow_redirects=True, **options)
        except httpx.HTTPError as error:
            raise UnavailableError(f"{url} cannot be reached: {error}") from error
        if response.is_error:
            raise _problem(response)
        return response


def _without_proxy(url: str) -> dict[str, httpx.BaseTransport | None]:
    """Keeps httpx from using the environment's proxy for a server on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    place = f"[{host}]" if ":" in host else host
    return {f"all://{place}": None} if is_here else {}


def _problem(response: httpx.Response) -> ServerError:
    kind = UnavailableError if response.is_server_error else ServerError
    try:
        return kind(str(response.json()["detail"]))
    except (ValueError, KeyError, TypeError):
        return kind(f"{response.url} answered {response.status_code}: {response.text[:200]}")
