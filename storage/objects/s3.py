"""An object store in an S3 bucket. Only this module and `s3_errors` import boto3."""

import base64
import hashlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal
from urllib.parse import quote

from boto3.session import Session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from core.errors import NotFound, ObjectExists, ObjectTooLarge, StoreUnavailable
from core.files import atomic_file
from storage.objects import ObjectInfo, checked_folder, checked_key, checked_prefix, s3_deadline
from storage.objects.s3_deadline import Deadline, limited
from storage.objects.s3_errors import our_errors, status_of, too_slow

_CHUNK = 1 << 20


class S3Store:
    """Objects under `prefix` in `bucket`. What is not given here, boto3 finds in the AWS configuration.

    The server verifies the SHA-256 of every upload. The checksum of a multipart upload covers only the checksums of its
    parts, so the digest of the whole object is stored in its metadata, and every download is verified against it. Files
    above `multipart_bytes` are uploaded in parts of that size: at least 5 MiB, at most 10,000 parts.

    A call takes at most `answer_s` seconds, and a second more for every `min_bytes_per_s` bytes of the object.
    """

    def __init__(
        self,
        *,
        bucket: str,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        access_key_id: str | None = None,
        secret_access_key: str | None = None,
        session_token: str | None = None,
        addressing: Literal["auto", "path", "virtual"] = "auto",
        ca_file: Path | None = None,
        multipart_bytes: int = 64 << 20,
        min_bytes_per_s: int = 100_000,
        answer_s: float = 120.0,
    ) -> None:
        self.bucket = bucket
        self.prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._multipart_bytes = multipart_bytes
        self._min_bytes_per_s, self._answer_s = min_bytes_per_s, answer_s
        # Most servers that an operator names have no host name for each bucket; botocore knows those that do.
        style = "path" if addressing == "auto" and endpoint_url else addressing
        self._client: Any = _client(
            region_name=region,
            endpoint_url=endpoint_url,
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            aws_session_token=session_token,
            verify=str(ca_file) if ca_file else None,
            config=Config(
                signature_version="s3v4",
                connect_timeout=5,
                read_timeout=30,
                retries={"mode": "standard", "total_max_attempts": 3},
                max_pool_connections=16,
                # This class sends SHA-256 itself; many servers do not know boto3's CRC trailers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"payload_signing_enabled": True} | ({} if style == "auto" else {"addressing_style": style}),
            ),
        )
        s3_deadline.bound(self._client)

    def put(self, key: str, data: bytes, *, create_only: bool = False) -> None:
        self._put_whole(key, data, len(data), hashlib.sha256(data).digest(), create_only)

    def put_file(self, key: str, path: Path, *, create_only: bool = False) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
            size = file.tell()
            file.seek(0)
            if size <= self._multipart_bytes:
                self._put_whole(key, file, size, digest, create_only)
            else:
                self._put_parts(key, file, size, digest, create_only)

    def get(self, key: str) -> bytes:
        with self._calling(key) as deadline:
            answer = self._client.get_object(**self._at(key))
            deadline.extend(_length(answer) / self._min_bytes_per_s)
            with closing(answer["Body"]) as body:
                data: bytes = body.read()
        _check_digest(key, answer, hashlib.sha256(data).hexdigest())
        return data

    def get_file(self, key: str, path: Path) -> None:
        digest = hashlib.sha256()
        with self._calling(key) as deadline, atomic_file(path) as out:
            answer = self._client.get_object(**self._at(key))
            deadline.extend(_length(answer) / self._min_bytes_per_s)
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
            if deadline.is_over:  # the file must not appear
                raise too_slow(key, deadline)
            _check_digest(key, answer, digest.hexdigest())

    def exists(self, key: str) -> bool:
        try:
            self.head(key)
        except NotFound:
            return False
        return True

    def head(self, key: str) -> ObjectInfo:
        with self._calling(key):
            answer = self._client.head_object(**self._at(key))
        return ObjectInfo(_length(answer), _digest(answer))

    def list(self, prefix: str) -> Iterator[str]:
        full = self.prefix + checked_prefix(prefix)
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=full))
        while True:
            with self._calling(prefix):  # one page: the time between pages is the caller's
                page = next(pages, None)
            if page is None:
                return
            for found in page.get("Contents", ()):
                yield found["Key"].removeprefix(self.prefix)

    def delete(self, key: str) -> None:
        with suppress(NotFound), self._calling(key):
            self._client.delete_object(**self._at(key))

    def delete_prefix(self, prefix: str) -> None:
        # One by one: servers disagree on the checksum of the bulk call, and there are few keys.
        for key in self.list(checked_folder(prefix)):
            self.delete(key)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{self.prefix}{checked_key(key)}"

    def url(self, key: str, expires_s: int, name: str | None = None) -> str:
        saved_as = {} if name is None else {"ResponseContentDisposition": f"attachment; filename*=UTF-8''{quote(name)}"}
        with self._calling(key):
            address: str = self._client.generate_presigned_url(
                "get_object", Params={**self._at(key), **saved_as}, ExpiresIn=expires_s
            )
        return address

    def read_foreign(self, bucket: str, key: str, max_bytes: int) -> bytes:
        """Read an object from any bucket that the credentials may read.

        Raises NotFound if it does not exist or may not be read, ObjectTooLarge above `max_bytes`, StoreUnavailable.
        """
        with self._calling("of the picture", final=True) as deadline:
            answer = self._client.get_object(Bucket=bucket, Key=key)
            deadline.extend(min(_length(answer), max_bytes) / self._min_bytes_per_s)
            with closing(answer["Body"]) as body:
                data: bytes = body.read(max_bytes + 1) if _length(answer) <= max_bytes else b""
        if _length(answer) > max_bytes or len(data) > max_bytes:
            raise ObjectTooLarge(f"the object has more than {max_bytes} bytes")
        return data

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + checked_key(key)}

    @contextmanager
    def _calling(self, key: str, size_bytes: int = 0, *, final: bool = False) -> Iterator[Deadline]:
        """Bound the time of a call about an object of `size_bytes`, and translate its errors.

        final: report a 4xx as NotFound too, for objects of other buckets.
        """
        with limited(self._answer_s + size_bytes / self._min_bytes_per_s) as deadline:
            try:
                with our_errors(key, final=final):
                    yield deadline
            except StoreUnavailable as error:
                if not deadline.is_over:
                    raise
                raise too_slow(key, deadline) from error
            if deadline.is_over:  # an answer without a length seems whole when it is cut
                raise too_slow(key, deadline)

    def _put_whole(self, key: str, body: bytes | BinaryIO, size: int, digest: bytes, create_only: bool) -> None:
        with self._calling(key, size), self._ours_after_all(key, digest):
            self._client.put_object(
                **self._at(key),
                Body=body,
                ChecksumSHA256=_base64(digest),
                Metadata={"sha256": digest.hex()},
                **_only_new(create_only),
            )

    def _put_parts(self, key: str, file: BinaryIO, size: int, digest: bytes, create_only: bool) -> None:
        if create_only and self.exists(key):  # fail before the upload; the last call decides
            raise ObjectExists(f"there is an object {key} already")
        with self._calling(key, size), self._ours_after_all(key, digest):
            upload = self._client.create_multipart_upload(
                **self._at(key), ChecksumAlgorithm="SHA256", Metadata={"sha256": digest.hex()}
            )
            at = {**self._at(key), "UploadId": upload["UploadId"]}
            try:
                parts = list(self._send_parts(at, file))
                self._client.complete_multipart_upload(**at, MultipartUpload={"Parts": parts}, **_only_new(create_only))
            except (BotoCoreError, ClientError, OSError):
                # Parts of an unfinished upload cost money until they are removed.
                with suppress(BotoCoreError, ClientError):
                    self._client.abort_multipart_upload(**at)
                raise

    def _send_parts(self, at: dict[str, str], file: BinaryIO) -> Iterator[dict[str, Any]]:
        for number in range(1, 10_001):
            data = file.read(self._multipart_bytes)
            if not data:
                return
            checksum = _base64(hashlib.sha256(data).digest())
            sent = self._client.upload_part(**at, PartNumber=number, Body=data, ChecksumSHA256=checksum)
            yield {"PartNumber": number, "ETag": sent["ETag"], "ChecksumSHA256": checksum}

    @contextmanager
    def _ours_after_all(self, key: str, digest: bytes) -> Iterator[None]:
        """If the response to a create-only write was lost, boto3's retry fails: accept it if the object is this one."""
        try:
            yield
        except ClientError as error:
            repeated = error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)
            if status_of(error) != 412 or not repeated or self.head(key).sha256 != digest.hex():
                raise


@cache
def _session() -> Session:
    return Session()


_SESSION_LOCK = Lock()


def _client(*, region_name: str | None, **options: Any) -> Any:
    """Clients are thread-safe, sessions are not. The session is cached because creating one takes 0.3 s."""
    with _SESSION_LOCK:
        session = _session()
        return session.client("s3", region_name=region_name or session.region_name or "us-east-1", **options)


def _only_new(create_only: bool) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if create_only else {}


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode("ascii")


def _length(answer: dict[str, Any]) -> int:
    """The announced length; 0 if the server announced none, as one that was cut off in its headers."""
    return int(answer.get("ContentLength") or 0)


def _digest(answer: dict[str, Any]) -> str | None:
    digest: str | None = answer.get("Metadata", {}).get("sha256")
    return digest


def _check_digest(key: str, answer: dict[str, Any], found: str) -> None:
    if _digest(answer) not in (None, found):
        raise StoreUnavailable(f"the object {key} is damaged: its checksum does not match", {"key": key})
