"""A registry in an S3 bucket, through boto3. Versions and aliases rest on conditional writes (If-None-Match, If-Match).

Servers that accept the conditions and ignore them exist; `prepare` finds out before anything is changed. Large files go
up in parts, several at once; parts that an earlier attempt left are kept when their content agrees.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from prmkit.errors import ConfigError, DataError, MissingDependencyError
from prmkit.ownership import remove_file
from registry.errors import DamagedError, NotFoundError
from registry.names import blob_key
from registry.storage import leases
from registry.storage.base import MARKER, MARKER_TEXT, Blob, Entry, Silent, Stored, Watch, check_marker
from registry.storage.transfer import hash_file, in_parallel

__all__ = ["S3Storage"]

PART = 32 * 2**20
MOST_PARTS = 10_000
_ABSENT = {"NoSuchKey", "404", "NotFound"}
_REFUSED = {"PreconditionFailed", "412", *_ABSENT}
_COLLISION = {"ConditionalRequestConflict", "409", "OperationAborted"}
_ATTEMPTS = 20


class S3Storage:
    """See `registry.storage.Storage`. Credentials, region and endpoint are those boto3 finds (AWS_ENDPOINT_URL, ...).

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.
        part: bytes of a part of a large file; at least 5 MiB on real servers.
    """

    conditional = True

    def __init__(self, url: str, part: int = PART) -> None:
        try:
            import boto3
            from botocore.config import Config
        except ImportError:
            raise MissingDependencyError(f"{url}: needs boto3; get it with: pip install 'prmkit[s3]'") from None
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise ConfigError("registry", url, "s3://bucket or s3://bucket/prefix")
        self.url = url.rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._part = part
        self._prepared = False
        self._s3: Any = boto3.client(
            "s3", config=Config(max_pool_connections=32, retries={"mode": "standard", "max_attempts": 5})
        )

    def prepare(self) -> None:
        if self._prepared:
            return
        check_marker(self)
        self.create(MARKER, MARKER_TEXT)
        # The same bytes once more: a server that ignores the conditions gives itself away and nothing is harmed.
        if self.create(MARKER, MARKER_TEXT) or self.replace(MARKER, MARKER_TEXT, '"0"'):
            raise ConfigError(
                "registry",
                self.url,
                "a server that honours conditional writes (If-None-Match, If-Match)",
                "Without them concurrent publishers would overwrite each other.",
            )
        self._prepared = True

    # -- small files ------------------------------------------------------------------------------------------------

    def read(self, key: str) -> Stored | None:
        with self._errors(key):
            try:
                answer = self._s3.get_object(**self._at(key))
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise
            return Stored(answer["Body"].read(), answer["ETag"])

    def create(self, key: str, data: bytes) -> bool:
        return self._put(key, data, IfNoneMatch="*")

    def replace(self, key: str, data: bytes, token: str) -> bool:
        return self._put(key, data, IfMatch=token)

    def _put(self, key: str, data: bytes, **condition: str) -> bool:
        checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
        with self._errors(key):
            for _ in range(_ATTEMPTS):  # 409: two conditional writes met; neither has been refused for good
                try:
                    self._s3.put_object(**self._at(key), Body=data, ChecksumSHA256=checksum, **condition)
                except self._s3.exceptions.ClientError as error:
                    if _code(error) in _REFUSED:
                        return False
                    if _code(error) not in _COLLISION:
                        raise
                else:
                    return True
        raise DataError(f"{self.url}/{key}: the server reported a conflict {_ATTEMPTS} times; try again")

    def delete(self, key: str) -> None:
        with self._errors(key):
            self._s3.delete_object(**self._at(key))

    # -- listings ---------------------------------------------------------------------------------------------------

    def entries(self, prefix: str) -> list[Entry]:
        cut = len(self._prefix)
        return [
            Entry(item["Key"][cut:], item["Size"], item["LastModified"].timestamp())
            for page in self._pages("list_objects_v2", prefix)
            for item in page.get("Contents", ())
        ]

    def names(self, prefix: str) -> list[str]:
        cut = len(self._prefix) + len(prefix)
        found: list[str] = []
        for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
            found += [item["Key"][cut:] for item in page.get("Contents", ())]
            found += [item["Prefix"][cut:].rstrip("/") for item in page.get("CommonPrefixes", ())]
        return found

    def _pages(self, operation: str, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        with self._errors(prefix):
            pages = self._s3.get_paginator(operation)
            yield from pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix, **options)

    # -- blobs ------------------------------------------------------------------------------------------------------

    def open(self, key: str, offset: int = 0) -> BinaryIO:
        with self._errors(key):
            try:
                answer = self._s3.get_object(**self._at(key), **({"Range": f"bytes={offset}-"} if offset else {}))
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    raise NotFoundError(f"{self.url}/{key}: missing from the registry") from None
                raise
            return cast(BinaryIO, answer["Body"])

    def size(self, key: str) -> int | None:
        with self._errors(key):
            try:
                return int(self._s3.head_object(**self._at(key))["ContentLength"])
            except self._s3.exceptions.ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def local_path(self, key: str) -> None:
        del key  # nothing lies on this machine

    def put_blob(self, source: Path, sha256: str | None, watch: Watch) -> Blob:
        before = source.stat()
        digest = hash_file(source)
        if sha256 is not None and digest != sha256:
            raise DamagedError(f"{source}: its content has the SHA-256 {digest}, expected {sha256}")
        key = blob_key(digest)
        if self.size(key) == before.st_size:
            watch.advance(before.st_size)
            return Blob(digest, before.st_size, written=False)
        if before.st_size <= self._part:
            self._put_whole(key, source, digest)
            watch.advance(before.st_size)
        else:
            self._put_parts(key, source, before.st_size, watch)
        after = source.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            self.delete(key)
            raise DataError(f"{source}: was changed while it was published; publish it when it is finished")
        return Blob(digest, before.st_size, written=True)

    def _put_whole(self, key: str, source: Path, digest: str) -> None:
        data = source.read_bytes()
        checksum = base64.b64encode(bytes.fromhex(digest)).decode()  # the server compares
        with self._errors(key):
            self._s3.put_object(**self._at(key), Body=data, ChecksumSHA256=checksum)

    def _put_parts(self, key: str, source: Path, size: int, watch: Watch) -> None:
        part = max(self._part, -(-size // MOST_PARTS))
        with self._errors(key):
            upload, there = self._upload(key)
            at = {**self._at(key), "UploadId": upload}

            def send(number: int) -> dict[str, Any]:
                with source.open("rb") as file:
                    file.seek((number - 1) * part)
                    data = file.read(part)
                checksum = base64.b64encode(hashlib.sha256(data).digest()).decode()
                known = there.get(number)
                if known is not None and _same_part(known, data, checksum):
                    tag = known["ETag"]
                else:
                    tag = self._s3.upload_part(**at, PartNumber=number, Body=data, ChecksumSHA256=checksum)["ETag"]
                watch.advance(len(data))
                return {"PartNumber": number, "ETag": tag, "ChecksumSHA256": checksum}

            try:
                parts = in_parallel(send, range(1, -(-size // part) + 1))
                self._s3.complete_multipart_upload(**at, MultipartUpload={"Parts": parts})
            except self._s3.exceptions.ClientError as error:
                # Another publisher of the same content went on with the same upload and has finished it.
                if _code(error) != "NoSuchUpload" or self.size(key) != size:
                    raise

    def _upload(self, key: str) -> tuple[str, dict[int, dict[str, Any]]]:
        """An upload to go on with, and its parts by number; a new one when there is none."""
        for page in self._pages("list_multipart_uploads", key):
            for upload in page.get("Uploads", ()):
                if upload["Key"] == self._prefix + key:
                    pages = self._s3.get_paginator("list_parts").paginate(**self._at(key), UploadId=upload["UploadId"])
                    return upload["UploadId"], {p["PartNumber"]: p for found in pages for p in found.get("Parts", ())}
        created = self._s3.create_multipart_upload(**self._at(key), ChecksumAlgorithm="SHA256")
        return created["UploadId"], {}

    def adopt_blob(self, source: Path, sha256: str) -> None:
        self.put_blob(source, sha256, Silent())
        remove_file(source)

    # -- publishers and garbage -------------------------------------------------------------------------------------

    def publishing(self) -> AbstractContextManager[None]:
        return leases.publishing(self)

    def collecting(self, patience: float, grace: float) -> AbstractContextManager[None]:
        return leases.collecting(self, patience, grace)

    def leftovers(self) -> list[Entry]:
        """Unfinished uploads; their key is `<key>?<upload id>`."""
        cut = len(self._prefix)
        return [
            Entry(f"{upload['Key'][cut:]}?{upload['UploadId']}", 0, upload["Initiated"].timestamp())
            for page in self._pages("list_multipart_uploads", "blobs/")
            for upload in page.get("Uploads", ())
        ]

    def discard(self, leftovers: Iterable[Entry]) -> None:
        for entry in leftovers:
            key, _, upload = entry.key.partition("?")
            with self._errors(key):
                self._s3.abort_multipart_upload(**self._at(key), UploadId=upload)

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    @contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        """What boto3 raises, as a DataError that names the place."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except ClientError as error:
            raise DataError(f"{self.url}/{key}: {error}") from error
        except BotoCoreError as error:
            raise DataError(f"{self.url}/{key}: {error} Check credentials, region and AWS_ENDPOINT_URL.") from error


def _same_part(known: dict[str, Any], data: bytes, checksum: str) -> bool:
    """Whether a part that is there has this content; its tag is its MD5 on servers that report no checksum."""
    if "ChecksumSHA256" in known:
        return bool(known["ChecksumSHA256"] == checksum)
    return str(known["ETag"]).strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _code(error: Any) -> str:
    return str(error.response["Error"]["Code"])
