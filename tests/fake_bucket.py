"""Buckets in memory behind the JSON API of Google Cloud Storage: as much of it as gcsfs,
TensorStore and Orbax ask for.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

OBJECT = re.compile(
    r"(/upload|/download)?/storage/v1/b/([^/]+)/o(?:/([^/]+)(?:/moveTo/o/([^/]+))?)?"
)


class FakeBuckets(ThreadingHTTPServer):
    """Serves until `close`. `objects` maps (bucket, name) to bytes; the environment in `env` leads
    clients here.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[tuple[str, str], bytes] = {}
        self.uploads: list[list] = []
        self.lock = threading.Lock()
        url = f"http://127.0.0.1:{self.server_port}"
        # No account anywhere, and no search for one.
        self.env = {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "FSSPEC_GS_TOKEN": "anon",
            "NO_GCE_CHECK": "true",
            "GCE_METADATA_ROOT": "127.0.0.1:1",
            "GCE_METADATA_IP": "127.0.0.1:1",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()

    def names(self, bucket: str) -> list[str]:
        return sorted(name for where, name in self.objects if where == bucket)

    def handle_error(self, *_) -> None:
        """A client that hangs up before it has read all is no error."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(iter(self._chunk, b""))
        with self.server.lock:
            self._route(url.path, body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _chunk(self) -> bytes:
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _reply(self, code: int, body: object = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header(
            "Content-Type",
            "application/octet-stream" if isinstance(body, bytes) else "application/json",
        )
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def _route(self, path: str, body: bytes) -> None:
        if re.fullmatch("/storage/v1/b/[^/]+", path):
            return self._reply(200, {"kind": "storage#bucket", "name": path.rpartition("/")[2]})
        found = OBJECT.fullmatch(path)
        if not found:
            return self._missing()
        service, bucket, name = found[1], found[2], unquote(found[3] or "")
        if service == "/upload":
            return self._upload(path, bucket, body)
        if not name:
            return self._list(bucket)
        if (bucket, name) not in self.server.objects:
            return self._missing()
        if found[4]:
            self.server.objects[bucket, unquote(found[4])] = self.server.objects.pop((bucket, name))
            return self._reply(200, self._described(bucket, unquote(found[4])))
        if self.command == "DELETE":
            del self.server.objects[bucket, name]
            return self._reply(204)
        if service == "/download" or self.query.get("alt") == "media":
            return self._download(self.server.objects[bucket, name])
        return self._reply(200, self._described(bucket, name))

    def _missing(self) -> None:
        self._reply(404, {"error": {"code": 404, "message": f"nothing at {self.path}"}})

    def _upload(self, path: str, bucket: str, body: bytes) -> None:
        if "upload_id" in self.query:
            upload = self.server.uploads[int(self.query["upload_id"])]
            upload[2] += body
            if self.headers["Content-Range"].endswith("/*"):
                return self._reply(308, Range=f"bytes=0-{len(upload[2]) - 1}")
            return self._store(*upload)
        kind, name = self.query["uploadType"], self.query.get("name")
        if kind == "resumable":
            self.server.uploads.append([bucket, name or json.loads(body)["name"], b""])
            number = len(self.server.uploads) - 1
            host = self.headers["Host"]
            where = f"http://{host}{path}?uploadType=resumable&upload_id={number}"
            return self._reply(200, Location=where)
        if kind == "multipart":
            boundary = re.search("boundary=['\"]?([^'\";]+)", self.headers["Content-Type"])[
                1
            ].encode()
            described, content = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
                for part in body.split(b"--" + boundary)[1:3]
            )
            name, body = json.loads(described)["name"], re.sub(rb"\r?\n\Z", b"", content)
        return self._store(bucket, name, body)

    def _store(self, bucket: str, name: str, body: bytes) -> None:
        wanted = self.query.get("ifGenerationMatch")
        if wanted is not None and (wanted == "0") == ((bucket, name) in self.server.objects):
            return self._reply(412, {"error": {"code": 412, "message": "generation"}})
        self.server.objects[bucket, name] = body
        self._reply(200, self._described(bucket, name))

    def _list(self, bucket: str) -> None:
        prefix, stop = self.query.get("prefix", ""), self.query.get("delimiter")
        items, prefixes = [], set()
        for name in self.server.names(bucket):
            inside = self.query.get("startOffset", "") <= name and name < self.query.get(
                "endOffset", "\U0010ffff"
            )
            if inside and name.startswith(prefix):
                rest = name[len(prefix) :]
                if stop and stop in rest:
                    prefixes.add(prefix + rest.split(stop)[0] + stop)
                else:
                    items.append(self._described(bucket, name))
        self._reply(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def _download(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if not asked:
            return self._reply(200, content, x_goog_generation="1")
        first = int(asked[1]) if asked[1] else max(len(content) - int(asked[2]), 0)
        end = min(int(asked[2]) + 1, len(content)) if asked[1] and asked[2] else len(content)
        if first >= len(content) > 0:
            return self._reply(416)
        self._reply(
            206,
            content[first:end],
            Content_Range=f"bytes {first}-{end - 1}/{len(content)}",
            x_goog_generation="1",
        )

    def _described(self, bucket: str, name: str) -> dict:
        content = self.server.objects[bucket, name]
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": name,
            "size": str(len(content)),
            "metageneration": "1",
            "generation": "1",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": "2026-01-01T00:00:00Z",
            "updated": "2026-01-01T00:00:00Z",
        }
