"""The body of a request for predictions: read while its bytes are counted, into images or addresses."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from imgclf.fetch import fetch_image
from imgclf.names import printable
from imgclf.serving.settings import IMAGES_PER_REQUEST, JSON_BYTES, Refusal, ServeSettings
from imgclf.serving.work import Ticket

__all__ = ["Upload", "read_uploads"]

_EXPECTED = "expected an image (image/* or application/octet-stream), multipart/form-data, or application/json"


@dataclass(frozen=True)
class Upload:
    """An image to classify: its `name`, and the bytes of its file, or None where the name is an address."""

    name: str
    data: bytes | None

    def content(self, settings: ServeSettings, seconds: float) -> bytes:
        """Return the bytes of the file; an address is fetched within `seconds`. Raises `ImageError`."""
        if self.data is not None:
            return self.data
        return fetch_image(self.name, allow_private=settings.allow_private, timeout_seconds=seconds)


async def read_uploads(request: Request, settings: ServeSettings, ticket: Ticket) -> list[Upload]:
    """Return the images of a request, at least one; the ticket accounts for their number and bytes.

    Raises `Refusal`: 400 for a body that isn't what its type says, 408 for one that arrives too slowly, 413 for one that
    is too large, 415 for another type, 429 where there is no room for it now.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise Refusal(415, f"content-encoding {printable(encoding)[:40]}: expected a body that isn't compressed", True)
    if kind == "multipart/form-data":
        read = partial(_read_form, request, _stream(request, settings.max_bytes, ticket))
    elif kind == "application/json":
        read = partial(_read_addresses, _stream(request, min(JSON_BYTES, settings.max_bytes), ticket))
    elif kind in ("", "application/octet-stream") or kind.startswith("image/"):
        read = partial(_read_image, _stream(request, settings.max_bytes, ticket))
    else:
        hint = "; with curl add -H 'Content-Type: image/jpeg'" if kind == "application/x-www-form-urlencoded" else ""
        raise Refusal(415, f"content-type {printable(kind)[:80]}: {_EXPECTED}{hint}", closes=True)
    try:
        uploads = await asyncio.wait_for(read(), settings.timeout_seconds)
    except asyncio.TimeoutError:
        line = f"the body didn't arrive within {settings.timeout_seconds:g} seconds"
        raise Refusal(408, line, closes=True) from None
    if not uploads:
        raise Refusal(400, "the body has no image; expected at least one file in the field images, or one address")
    ticket.take(len(uploads) - 1)
    return uploads


async def _stream(request: Request, most: int, ticket: Ticket) -> AsyncGenerator[bytes, None]:
    """Yield the body as it arrives; raises `Refusal` once it is known to have more than `most` bytes."""
    too_large = Refusal(413, f"the body has more than {most:,} bytes; send a smaller image", closes=True)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    count = 0
    async for chunk in request.stream():
        count += len(chunk)
        if count > most:
            raise too_large
        ticket.hold(len(chunk))
        yield chunk


async def _read_image(stream: AsyncGenerator[bytes, None]) -> list[Upload]:
    return [Upload("image", b"".join([chunk async for chunk in stream]))]


async def _read_addresses(stream: AsyncGenerator[bytes, None]) -> list[Upload]:
    body = b"".join([chunk async for chunk in stream])
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal(400, 'the body isn\'t JSON; expected {"urls": ["https://..."]}') from None
    urls = value.get("urls") if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise Refusal(400, 'expected JSON such as {"urls": ["https://..."]}, and nothing else in it')
    if len(urls) > IMAGES_PER_REQUEST:
        raise Refusal(400, f"{len(urls)} addresses: expected at most {IMAGES_PER_REQUEST} in a request")
    return [Upload(url, None) for url in urls]


class _FormInMemory(MultiPartParser):
    """Keeps files in memory, where the ticket has counted them: a container may have no folder for temporary ones."""

    spool_max_size = 2**40


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None]) -> list[Upload]:
    try:
        parser = _FormInMemory(request.headers, stream, max_files=IMAGES_PER_REQUEST, max_fields=IMAGES_PER_REQUEST)
        form = await parser.parse()
    except MultiPartException as error:
        line = f"the form can't be read ({printable(error.message)[:120]}); expected at most {IMAGES_PER_REQUEST} files"
        raise Refusal(400, line, closes=True) from None
    try:
        return [await _file(field, value) for field, value in form.multi_items()]
    finally:
        await form.close()


async def _file(field: str, value: UploadFile | str) -> Upload:
    """Return a file of a form; raises `Refusal` 400 for a text, and for another field."""
    if field != "images" or isinstance(value, str):
        what = "a text" if isinstance(value, str) else "a file"
        raise Refusal(400, f"field {printable(field)[:80]!r} is {what}: expected files in the field images")
    return Upload(value.filename or "image", await value.read())
