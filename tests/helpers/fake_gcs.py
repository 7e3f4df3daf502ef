"""A small fake of Google Cloud Storage for the real client, with faults on demand.

Unlike other emulators, it enforces preconditions as the service does.
"""

import base64
import contextlib
import dataclasses
import email.utils
import itertools
import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

PAGE = 7  # objects per page of a listing, few so that tests have several pages


def crc32c(content: bytes) -> str:
    return base64.b64encode(google_crc32c.Checksum(content).digest()).decode()


@dataclasses.dataclass
class Object:
    content: bytes
    generation: int
    updated: float

    def describe(self, bucket: str, name: str) -> dict:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.updated))
        return {
            "kind": "storage#object", "bucket": bucket, "name": name,
            "generation": str(self.generation), "size": str(len(self.content)),
            "crc32c": crc32c(self.content), "updated": f"{stamp}.{self.updated % 1 * 1e6:06.0f}Z",
        }  # fmt: skip


@dataclasses.dataclass
class Fault:
    """A fault that the server injects into matching requests.

    Attributes:
      kind: an HTTP status; "cut" closes the connection in the middle of the body, "corrupt"
        changes a byte of the content, "lost" executes the request but responds with a 503, and
        "slow" delays the response.
      method: "list", "upload", "download", "delete", "get", "copy" or
        "compose"; "" matches all.
      name: regular expression that the object's name must contain; for "list", the prefix.
      times: number of requests that it affects.
      secs: delay of "slow" in seconds.
    """

    kind: int | str
    method: str = ""
    name: str = ""
    times: float = float("inf")
    secs: float = 0.0


class Server:
    """The server, which runs in a thread.

    Attributes:
      objects: the stored objects, by bucket and name.
      faults: the faults to inject; the first that matches a request applies.
      log: the method and object name of each request that may have a fault.
      received: bytes of content that were sent to each object.
      payer: project that each request must name, as for a bucket with Requester Pays.
      url: address of the server.
    """

    def __init__(self):
        self.objects: dict[str, dict[str, Object]] = {"bucket": {}}
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str]] = []
        self.received: dict[str, int] = {}
        self.payer = ""
        self.lock = threading.RLock()
        self.generations = itertools.count(1000)
        self.sessions: dict[str, dict] = {}
        self.connections: list[socket.socket] = []
        handler = type("Handler", (Handler,), {"world": self})
        self._http = QuietServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(2)

    def put(self, name: str, content: bytes, bucket="bucket") -> Object:
        with self.lock:
            new = Object(content, next(self.generations), time.time())
            self.objects[bucket][name] = new
            return new

    def names(self, prefix="", bucket="bucket") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects[bucket] if name.startswith(prefix))

    def fault(self, method: str, name: str) -> Fault | None:
        with self.lock:
            self.log.append((method, name))
            for fault in self.faults:
                if fault.method in ("", method) and re.search(fault.name, name) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class QuietServer(ThreadingHTTPServer):
    """A server that ignores clients which disconnect during a request."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of one connection."""

    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True  # sends a response in one packet
    world: Server

    def setup(self):
        super().setup()
        self.world.connections.append(self.connection)

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle(self._get)

    def do_POST(self):
        self._handle(self._post)

    def do_PUT(self):
        self._handle(self._put)

    def do_DELETE(self):
        self._handle(self._delete)

    def _handle(self, act: Callable[[], None]):
        parts = urlsplit(self.path)
        self.query = {key: value[0] for key, value in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = re.fullmatch(r"(.*?)/b/([^/]+)(?:/o(?:/(.*))?)?", parts.path)
        self.kind, self.bucket, name = match[1], match[2], unquote(match[3] or "")
        self.object_name, _, self.target = name.partition("/rewriteTo/b/")
        payer = self.world.payer
        if payer and self.query.get("userProject") != payer and "upload_id" not in self.query:
            self._fail(400, "Bucket is a requester pays bucket but no user project provided.")
            return
        act()

    def _fault(self, method: str, name: str) -> Fault | None:
        """Returns the fault of a request; sends the response if the fault is an HTTP status."""
        fault = self.world.fault(method, name)
        if fault is None or fault.kind in ("corrupt", "lost", "cut"):
            return fault
        if fault.kind == "slow":
            time.sleep(fault.secs)
            return None
        self._fail(int(fault.kind))
        return fault

    def _fail(self, code: int, message: str = ""):
        message = message or {401: "Invalid Credentials", 403: "does not have access"}.get(
            code, "no"
        )
        self._send(code, {"error": {"code": code, "message": message, "errors": [
            {"message": message, "reason": "x"}]}})  # fmt: skip

    def _send(self, code: int, content: dict | bytes, headers: dict | None = None, cut=False):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {"Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.end_headers()
        if cut:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(2)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _objects(self) -> dict[str, Object] | None:
        objects = self.world.objects.get(self.bucket)
        if objects is None:
            self._fail(404, "The specified bucket does not exist.")
        return objects

    def _preconditions_hold(self, name: str) -> bool:
        """Returns whether the request's preconditions hold; sends an error response if not."""
        wanted = self.query.get("ifGenerationMatch")
        there = self.world.objects[self.bucket].get(name)
        if wanted is not None and int(wanted) != (there.generation if there else 0):
            self._fail(412, "At least one of the pre-conditions you specified did not hold.")
            return False
        return True

    def _get(self):
        objects = self._objects()
        if objects is None:
            return
        if not self.object_name:
            if not self._fault("list", self.query.get("prefix", "")):
                self._list(objects)
            return
        download = self.kind.startswith("/download")
        fault = self._fault("download" if download else "get", self.object_name)
        if fault and fault.kind not in ("cut", "corrupt"):
            return
        there = objects.get(self.object_name)
        if there is None:
            self._fail(404, f"No such object: {self.bucket}/{self.object_name}")
        elif self._preconditions_hold(self.object_name):
            if download:
                self._download(there, fault)
            else:
                self._send(200, there.describe(self.bucket, self.object_name))

    def _list(self, objects: dict[str, Object]):
        names = [n for n in sorted(objects) if n.startswith(self.query.get("prefix", ""))]
        start = int(self.query.get("pageToken", 0))
        page = {"items": [objects[n].describe(self.bucket, n) for n in names[start:][:PAGE]]}
        if start + PAGE < len(names):
            page["nextPageToken"] = str(start + PAGE)
        self._send(200, page)

    def _download(self, there: Object, fault: Fault | None):
        content, code = there.content, 200
        if byte_range := self.headers.get("Range"):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d*)", byte_range).groups()
            content, code = content[int(first) : int(last) + 1 if last else None], 206
        if fault and fault.kind == "corrupt":
            content = bytes([content[0] ^ 1]) + content[1:]
        headers = {
            "Content-Type": "application/octet-stream",
            "x-goog-hash": f"crc32c={crc32c(there.content)}",
            "x-goog-generation": str(there.generation),
            "x-goog-stored-content-length": str(len(there.content)),
            "Last-Modified": email.utils.formatdate(there.updated, usegmt=True),
        }
        self._send(code, content, headers, cut=bool(fault and fault.kind == "cut"))

    def _post(self):
        if self._objects() is None:
            return
        if self.target:
            self._rewrite()
        elif self.object_name.endswith("/compose"):
            self._compose(self.object_name.removesuffix("/compose"))
        elif self.query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            _, about, content, _ = self.body.split(b"--" + boundary)
            about, content = (part.split(b"\r\n\r\n", 1)[1][:-2] for part in (about, content))
            self._store(json.loads(about), content)
        else:
            about = json.loads(self.body)
            about["name"] = self.query.get("name", about.get("name"))
            if not self._fault("upload", about["name"]):
                session = str(next(self.world.generations))
                self.world.sessions[session] = {**about, "query": self.query, "content": b""}
                url = f"{self.world.url}/upload/storage/v1/b/{self.bucket}/o?upload_id={session}"
                self._send(200, b"", {"Location": url})

    def _put(self):
        session = self.world.sessions[self.query["upload_id"]]
        span = self.headers.get("Content-Range", "")
        session["content"] += self.body
        if span.endswith("/*") or int(span.split("/")[1]) > len(session["content"]):
            self._send(308, b"", {"Range": f"bytes=0-{len(session['content']) - 1}"})
        else:
            self.query = session["query"]
            self._store(session, session["content"])

    def _store(self, about: dict, content: bytes):
        name = about["name"]
        self.world.received[name] = self.world.received.get(name, 0) + len(content)
        fault = self._fault("upload", name)
        if fault and fault.kind == "cut":
            self.connection.shutdown(2)
            self.close_connection = True
            return
        if fault and fault.kind not in ("corrupt", "lost"):
            return
        with self.world.lock:
            if not self._preconditions_hold(name):
                return
            if fault and fault.kind == "corrupt":
                content = content[:-1] + bytes([content[-1] ^ 1])
            elif about.get("crc32c", crc32c(content)) != crc32c(content):
                self._fail(400, "Provided CRC32C doesn't match calculated CRC32C.")
                return
            stored = self.world.put(name, content, self.bucket)
        if fault and fault.kind == "lost":
            self._fail(503)
        else:
            self._send(200, stored.describe(self.bucket, name))

    def _rewrite(self):
        name = self.target.partition("/o/")[2]
        if self._fault("copy", self.object_name):
            return
        there = self.world.objects[self.bucket].get(self.object_name)
        if there is None:
            self._fail(404, f"No such object: {self.bucket}/{self.object_name}")
            return
        new = self.world.put(name, there.content, self.bucket)
        size = str(len(new.content))
        self._send(200, {
            "kind": "storage#rewriteResponse", "done": True, "objectSize": size,
            "totalBytesRewritten": size, "resource": new.describe(self.bucket, name),
        })  # fmt: skip

    def _compose(self, name: str):
        fault = self._fault("compose", name)
        if fault and fault.kind not in ("corrupt", "lost"):
            return
        with self.world.lock:
            objects = self.world.objects[self.bucket]
            sources = json.loads(self.body)["sourceObjects"]
            if any(source["name"] not in objects for source in sources):
                self._fail(404, "No such object")
                return
            wanted = [s.get("objectPreconditions", {}).get("ifGenerationMatch") for s in sources]
            found = [objects[source["name"]].generation for source in sources]
            if any(w and int(w) != f for w, f in zip(wanted, found, strict=True)):
                self._fail(412, "At least one of the pre-conditions you specified did not hold.")
                return
            if not self._preconditions_hold(name):
                return
            content = b"".join(objects[source["name"]].content for source in sources)
            if fault and fault.kind == "corrupt":
                content = content[:-1] + bytes([content[-1] ^ 1])
            stored = self.world.put(name, content, self.bucket)
        if fault and fault.kind == "lost":
            self._fail(503)
        else:
            self._send(200, stored.describe(self.bucket, name))

    def _delete(self):
        objects = self._objects()
        if objects is None or self._fault("delete", self.object_name):
            return
        with self.world.lock:
            if self.object_name not in objects:
                self._fail(404, f"No such object: {self.bucket}/{self.object_name}")
            elif self._preconditions_hold(self.object_name):
                del objects[self.object_name]
                self._send(204, b"")
