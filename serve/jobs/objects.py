"""The object store: images and checkpoints by key, in a local folder or a bucket."""

import asyncio
import logging
import re
import shutil
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, UnknownConfigurationKeyError
from obstore.store import LocalStore, from_url

from serve.errors import ObjectNotFoundError, ObjectStoreUnavailableError
from serve.jobs.durable_files import disk_errors, write_whole
from serve.private_files import make_private_folder

if TYPE_CHECKING:
    from obstore import SignCapableStore
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as Backend

logger = logging.getLogger("ray.serve")
_SUFFIXES = {"image/png": ".png", "image/webp": ".webp", "image/jpeg": ".jpg"}
_MEDIA_TYPES = {suffix: media_type for media_type, suffix in _SUFFIXES.items()}
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"  # no leading dot: no path upwards and no unfinished file
_KEY = re.compile(rf"{_NAME}(/{_NAME})*")
_IMAGE_KEY = re.compile(r"(images/[A-Za-z0-9_-]+/[0-9]+-|answers/)[A-Za-z0-9_-]{22}\.(png|webp|jpg)")
_CHUNK_BYTES = 256 * 1024
_LAST_WAIT_S = 10.0

ANSWERS_FOLDER = "answers"  # images without a job, deleted by age
IMAGE_CACHE_CONTROL = "private, max-age=31536000, immutable"

# An unreachable store is reported within seconds; its callers try again.
_RETRIES: "RetryConfig" = {
    "max_retries": 4,
    "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
    "retry_timeout": timedelta(seconds=10),
}
_TIMEOUTS: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "15s", "timeout": "2min"}
# obstore takes these apart from the store's own options, and panics if they are among them.
_CLIENT_OPTIONS = frozenset(
    [
        "allow_http",
        "allow_invalid_certificates",
        "connect_timeout",
        "default_content_type",
        "http1_only",
        "http2_only",
        "http2_keep_alive_interval",
        "http2_keep_alive_timeout",
        "http2_keep_alive_while_idle",
        "pool_idle_timeout",
        "pool_max_idle_per_host",
        "proxy_ca_certificate",
        "proxy_excludes",
        "proxy_url",
        "randomize_addresses",
        "read_timeout",
        "root_certificate",
        "timeout",
        "user_agent",
    ]
)


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's metadata. etag: as in HTTP, in quotes; media_type: from the key's suffix"""

    key: str
    size_bytes: int
    last_modified: datetime
    etag: str
    media_type: str


class ObjectStore:
    """Bytes by key. Keys are names between slashes. A half-written object is never visible.

    A local folder keeps durable objects through a loss of power: the file and the folders above it are
    synchronised before `put` returns. A bucket keeps what its service promises.

    Every method raises ObjectStoreUnavailableError if the store is unreachable or refuses us, and ValueError
    if the key is malformed.
    """

    def __init__(self, url: str, options: Mapping[str, str] | None = None) -> None:
        """url: the path of a folder, which is made if needed, or file://, s3://bucket/prefix, gs:// or az://

        options: options of a bucket, as obstore names them: endpoint, region, access_key_id, ...

        Raises ValueError for an impossible store.
        """
        self._folder = _local_folder(url)
        if self._folder is None:
            self._backend: Backend = _bucket(url, options or {})
        elif options:
            raise ValueError(f"{url} is a local folder, which takes no options: {', '.join(sorted(options))}")
        else:
            try:
                make_private_folder(self._folder)
            except OSError as error:
                raise ValueError(f"{self._folder} cannot be created: {error.strerror}") from error
            self._backend = LocalStore(self._folder)

    async def put(
        self,
        key: str,
        data: bytes,
        media_type: str = "application/octet-stream",
        is_durable: bool = True,
    ) -> None:
        """Stores an object and replaces an earlier one with the key. Raises StorageFullError.

        A canceled caller waits until the object is stored or refused, so that it may then delete it: what
        comes later would stay for ever.

        is_durable: whether a local folder keeps it through a loss of power
        """
        _check_key(key)
        await _to_its_end(self._put(key, data, media_type, is_durable))

    async def _put(self, key: str, data: bytes, media_type: str, is_durable: bool) -> None:
        if self._folder is not None:
            with disk_errors():
                await asyncio.to_thread(write_whole, self._folder, key, data, is_durable)
            return
        attributes = {"Content-Type": media_type}
        if is_image_key(key):
            attributes["Cache-Control"] = IMAGE_CACHE_CONTROL
        with _bucket_errors():
            try:
                # In one part: abandoned parts of an upload would be invisible but cost money.
                await obstore.put_async(self._backend, key, data, attributes=attributes, use_multipart=False)
            except FileNotFoundError as error:
                raise ObjectStoreUnavailableError("There is no such bucket.") from error

    async def get(self, key: str) -> StoredObject:
        """An object's metadata without its bytes. Raises ObjectNotFoundError."""
        _check_key(key)
        with _bucket_errors(), _missing(key):
            meta = await obstore.head_async(self._backend, key)
        modified, size_bytes = meta["last_modified"], meta["size"]
        etag = meta["e_tag"] or f'"{modified.timestamp():.6f}-{size_bytes}"'
        return StoredObject(key, size_bytes, modified, etag, media_type_of(key))

    async def read(self, key: str) -> bytes:
        """The object's bytes. Raises ObjectNotFoundError."""
        _check_key(key)
        with _bucket_errors(), _missing(key):
            return bytes(await (await obstore.get_async(self._backend, key)).bytes_async())

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        """The object in parts; only one part is in memory. Raises ObjectNotFoundError at once."""
        _check_key(key)
        with _bucket_errors(), _missing(key):
            opened = await obstore.get_async(self._backend, key)
        return opened.stream(_CHUNK_BYTES)

    async def delete_folder(self, folder: str) -> None:
        """Deletes all keys that begin with `folder` and a slash, also those that no record names."""
        _check_key(folder)
        if self._folder is not None:
            with disk_errors(), suppress(FileNotFoundError):
                await asyncio.to_thread(shutil.rmtree, self._folder / folder)
            return
        with _bucket_errors():
            async for found in obstore.list(self._backend, f"{folder}/"):
                await self._delete_from_bucket([meta["path"] for meta in found])

    async def delete_older(self, folder: str, age_s: float) -> None:
        """Deletes the objects of a folder that were stored longer ago than this."""
        _check_key(folder)
        stored_before = datetime.now(UTC) - timedelta(seconds=age_s)
        with _bucket_errors():
            async for found in obstore.list(self._backend, f"{folder}/"):
                old = [meta["path"] for meta in found if meta["last_modified"] < stored_before]
                if old:
                    await self._delete_from_bucket(old)

    async def presigned_url(self, key: str, expires_in_s: float) -> str | None:
        """A URL that gives the object to anyone who has it, until it expires; None for a local folder."""
        _check_key(key)
        if self._folder is not None:
            return None
        with _bucket_errors():
            signing = cast("SignCapableStore", self._backend)
            return await obstore.sign_async(signing, "GET", key, timedelta(seconds=expires_in_s))

    async def _delete_from_bucket(self, keys: Sequence[str]) -> None:
        try:
            await obstore.delete_async(self._backend, keys)
        except FileNotFoundError:  # some services raise this and keep the other objects
            for key in keys:
                with suppress(FileNotFoundError):
                    await obstore.delete_async(self._backend, key)


def image_key(job_id: str, index: int, media_type: str) -> str:
    """A new key for an image of a job. Nobody can guess it."""
    return f"images/{job_id}/{index}-{token_urlsafe(16)}{_SUFFIXES[media_type]}"


def preview_key(job_id: str, image_index: int, preview_index: int, media_type: str) -> str:
    return f"previews/{job_id}/{image_index}-{preview_index}{_SUFFIXES[media_type]}"


def answer_key(media_type: str) -> str:
    """A new key for an image of an answer. Nobody can guess it."""
    return f"{ANSWERS_FOLDER}/{token_urlsafe(16)}{_SUFFIXES[media_type]}"


def is_image_key(key: str) -> bool:
    return _IMAGE_KEY.fullmatch(key) is not None


def media_type_of(key: str) -> str:
    return _MEDIA_TYPES.get(Path(key).suffix, "application/octet-stream")


async def _to_its_end(storing: Coroutine[Any, Any, None]) -> None:
    """Waits for the work even if the caller is canceled, but then not for an unreachable store."""
    task = asyncio.create_task(storing)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_LAST_WAIT_S)
        task.add_done_callback(_forget_outcome)
        raise


def _forget_outcome(task: "asyncio.Task[None]") -> None:
    """Nobody waits for it any more, so asyncio would report an error that nobody has seen."""
    if not task.cancelled():
        task.exception()


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not an object key")


def _local_folder(url: str) -> Path | None:
    """The folder of a path or file URL; None for other URLs."""
    if "://" not in url:
        return Path(url).expanduser().absolute()
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    if parts.netloc not in {"", "localhost"}:
        raise ValueError(f"{url}: the folder is on {parts.netloc!r}; write file:///path with three slashes")
    return Path(unquote(parts.path))


def _bucket(url: str, options: Mapping[str, str]) -> "Backend":
    if urlsplit(url).scheme not in {"s3", "gs", "az"}:
        raise ValueError(f"{url} is neither a folder nor an s3://, gs:// or az:// URL")
    plain_http = any(
        "endpoint" in name.lower() and value.startswith("http://") for name, value in options.items()
    )
    # Any: obstore's types list the known names, but obstore itself is asked.
    config: Any = {name: value for name, value in options.items() if name not in _CLIENT_OPTIONS}
    client: Any = {name: value for name, value in options.items() if name in _CLIENT_OPTIONS}
    client = {**_TIMEOUTS, "allow_http": str(plain_http).lower(), **client}
    try:
        backend: Backend = from_url(url, config=config, client_options=client, retry_config=_RETRIES)
        return backend
    except UnknownConfigurationKeyError as error:
        raise ValueError(f"{url}: {_first_line(error)}") from error
    except (BaseError, ValueError) as error:
        raise ValueError(f"{url} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """The first line of an error, because obstore adds a page of its own internals."""
    return str(error).partition("\n")[0]


@contextmanager
def _bucket_errors() -> Iterator[None]:
    try:
        yield
    except BaseError as error:
        logger.warning("object store: %s", _first_line(error))
        raise ObjectStoreUnavailableError("The object store cannot be reached, or refuses us.") from error


@contextmanager
def _missing(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectNotFoundError(f"There is no {key}; files are deleted after a time.") from error
