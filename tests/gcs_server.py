"""An object store in memory that speaks the part of the JSON API of Google Cloud Storage that gcsfs, TensorStore and
google-cloud-storage use: https://cloud.google.com/storage/docs/json_api/v1.

Clients find it by `Store.environment`. What is uploaded to the buckets `forbidden` and `private` is refused: without
permission, and without credentials.
"""

import base64
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

FORBIDDEN, PRIVATE = "forbidden", "private"


class Refused(Exception):
    """A request that is answered with an error status."""

    def __init__(self, status: int, message: str = ""):
        super().__init__(message)
        self.status, self.message = status, message


@dataclasses.dataclass(frozen=True)
class Object:
    """The content of an object, and the number of the write that made it."""

    content: bytes
    generation: int


class Store:
    """Buckets of objects by name; thread-safe."""

    def __init__(self, *buckets: str):
        self.buckets: dict[str, dict[str, Object]] = {name: {} for name in (*buckets, FORBIDDEN, PRIVATE)}
        self.lock = threading.RLock()
        self.requests: list[str] = []  # method and path of each
        self.address = ""
        self.uploads: dict[str, tuple[str, str, str]] = {}  # of resumable uploads: bucket, name, generation to match
        self.parts: dict[str, bytes] = {}
        self._generations = itertools.count(1000)

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which clients find this store and need no credentials."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "TENSORSTORE_GCS_REQUEST_LOGGING": "0",
            "GOOGLE_CLOUD_PROJECT": "test",
            "NO_GCE_CHECK": "true",
        }

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the names of the objects under a prefix."""
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def content(self, bucket: str, name: str) -> bytes:
        """Return the content of an object."""
        return self.buckets[bucket][name].content

    def put(self, bucket: str, name: str, content: bytes, *, match: str = "") -> dict[str, Any]:
        """Write an object; `match` is the generation to replace, 0 for none."""
        self.check_allowed(bucket)
        with self.lock:
            objects = self.bucket(bucket)
            present = objects[name].generation if name in objects else 0
            if match and int(match) != present:
                raise Refused(412, "a condition was not met")
            objects[name] = Object(content, next(self._generations))
            return self.facts(bucket, name)

    @staticmethod
    def check_allowed(bucket: str) -> None:
        """Refuse what is uploaded to the buckets for that."""
        if bucket == FORBIDDEN:
            raise Refused(403, "no permission to create objects")
        if bucket == PRIVATE:
            raise Refused(401, "Anonymous caller does not have storage.objects.create access")

    def remove(self, bucket: str, name: str, *, match: str = "") -> None:
        """Delete an object."""
        with self.lock:
            if match and int(match) != self.get(bucket, name).generation:
                raise Refused(412, "a condition was not met")
            self.get(bucket, name)
            del self.buckets[bucket][name]

    def bucket(self, name: str) -> dict[str, Object]:
        """Return the objects of a bucket."""
        if name not in self.buckets:
            raise Refused(404, "the bucket does not exist")
        return self.buckets[name]

    def get(self, bucket: str, name: str) -> Object:
        """Return an object."""
        with self.lock:
            if name not in self.bucket(bucket):
                raise Refused(404, "no such object")
            return self.buckets[bucket][name]

    def facts(self, bucket: str, name: str) -> dict[str, Any]:
        """Return the metadata of an object."""
        value = self.get(bucket, name)
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(value.content)),
            "generation": str(value.generation),
            "metageneration": "1",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(value.content).digest()).decode(),
            "etag": str(value.generation),
        }

    def listing(self, bucket: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return a page of objects, and of prefixes up to the delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self.lock:
            self.bucket(bucket)
            names, prefixes = [], set[str]()
            for name in self.names(bucket, prefix):
                end = name.find(delimiter, len(prefix)) if delimiter else -1
                if query.get("startOffset", "") > name or (query.get("endOffset") or "\U0010ffff") <= name:
                    continue
                if end >= 0:
                    prefixes.add(name[: end + len(delimiter)])
                else:
                    names.append(name)
            items = [self.facts(bucket, name) for name in names]
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        body = self._body()
        self.store.requests.append(f"{method} {self.path}")
        try:
            status, headers, content = self._handle(method, self.path, body)
        except Refused as error:
            detail = {"error": {"code": error.status, "message": error.message}}
            status, headers, content = error.status, {}, json.dumps(detail).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        with contextlib.suppress(ConnectionError):  # of a client that is killed, or needs no more
            self.end_headers()
            self.wfile.write(content)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _handle(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(path)
        query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        if url.path.startswith("/batch"):
            return self._batch(body)
        match = re.fullmatch(
            r"(?:/(upload|download))?/(?:storage/v1|resumable)(?:/b)?/([^/]+)(/o)?(?:/(.+))?", url.path
        )
        if match is None:
            raise Refused(404, "no such method")
        kind, bucket, objects, rest = match.groups()
        bucket = unquote(bucket)
        if url.path.startswith("/resumable"):
            return self._continue_upload(bucket, body)
        if not objects:
            self.store.bucket(bucket)
            return _json({"kind": "storage#bucket", "name": bucket, "id": bucket, "location": "US"})
        if kind == "upload":
            return self._upload(bucket, query, body)
        if rest is None:
            return _json(self.store.listing(bucket, query))
        return self._object(method, bucket, rest, query, body)

    def _object(
        self, method: str, bucket: str, rest: str, query: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        store = self.store
        if move := re.fullmatch(r"([^/]+)/moveTo/o/([^/]+)", rest):
            source, name = map(unquote, move.groups())
            facts = store.put(bucket, name, store.get(bucket, source).content)
            store.remove(bucket, source)
            return _json(facts)
        if copy := re.fullmatch(r"([^/]+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)", rest):
            source, target, name = map(unquote, copy.groups())
            facts = store.put(target, name, store.get(bucket, source).content)
            return _json({"kind": "storage#rewriteResponse", "done": True, "resource": facts, **facts})
        name = unquote(rest)
        if method == "DELETE":
            store.remove(bucket, name, match=query.get("ifGenerationMatch", ""))
            return 204, {}, b""
        value = store.get(bucket, name)
        if query.get("alt") != "media":
            return _json(store.facts(bucket, name))
        match = query.get("ifGenerationNotMatch") or ""
        if match and int(match) == value.generation:
            return 304, {}, b""
        headers = {
            "x-goog-generation": str(value.generation),
            "x-goog-hash": f"md5={store.facts(bucket, name)['md5Hash']}",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return 200, headers, value.content
        start, size = int(wanted[1]), len(value.content)
        if start >= size:
            raise Refused(416, "range")
        end = min(int(wanted[2]) + 1 if wanted[2] else size, size)
        return 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}, value.content[start:end]

    def _upload(self, bucket: str, query: Mapping[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        store, match = self.store, query.get("ifGenerationMatch", "")
        kind = query.get("uploadType")
        if kind == "media":
            return _json(store.put(bucket, query["name"], body, match=match))
        if kind == "multipart":
            boundary = re.search(r"boundary=\"?'?([^\"';]+)", self.headers["Content-Type"])
            assert boundary is not None
            parts = body.split(b"--" + boundary[1].encode())[1:-1]
            first, content = (re.split(rb"\r?\n\r?\n", part.lstrip(b"\r\n"), maxsplit=1)[1] for part in parts)
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            name = query.get("name") or json.loads(first)["name"]
            return _json(store.put(bucket, name, content, match=match))
        name = query.get("name") or json.loads(body)["name"]
        store.check_allowed(bucket)
        store.bucket(bucket)
        identity = f"upload{len(store.uploads)}"
        store.uploads[identity] = (bucket, name, match)
        return 200, {"Location": f"{store.address}/resumable/{identity}"}, b""

    def _continue_upload(self, identity: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        store = self.store
        bucket, name, match = store.uploads[identity]
        content = store.parts.get(identity, b"") + body
        if (self.headers.get("Content-Range") or "/0").endswith("/*"):
            store.parts[identity] = content
            return 308, {"Range": f"bytes=0-{len(content) - 1}"}, b""
        store.parts.pop(identity, None)
        return _json(store.put(bucket, name, content, match=match))

    def _batch(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        answers = []
        for index, path in enumerate(re.findall(rb"DELETE (\S+) HTTP", body)):
            try:
                status, _, _ = self._handle("DELETE", path.decode(), b"")
            except Refused as error:
                status = error.status
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{index + 1}>\r\n\r\n"
                f"HTTP/1.1 {status} answer\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        content = "".join([*answers, "--batch--"]).encode()
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, content


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing about clients that are killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _json(value: Any) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextlib.contextmanager
def serving(*buckets: str) -> Iterator[Store]:
    """Yield a store with `buckets` that answers on a port of this machine."""
    store = Store(*buckets)
    handler = type("Handler", (_Handler,), {"store": store})
    server = _Server(("127.0.0.1", 0), handler)
    store.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
