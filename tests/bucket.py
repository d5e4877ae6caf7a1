"""gs:// without Google: the files of buckets in memory.

Two ways lead to them, as in earnest: fsspec (small files, listings, by epath) and the
JSON interface over HTTP (arrays, by TensorStore), which a server here speaks.
"""

import contextlib
import http.server
import itertools
import json
import os
import threading
import urllib.parse
from typing import ClassVar

import fsspec
from fsspec.implementations import memory
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils

_generation = itertools.count(1)


class Bucket(memory.MemoryFileSystem):
    """fsspec's memory under the name gs; `read_only` refuses what changes it."""

    protocol = ("gs", "gcs", "memory")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]
    read_only = False
    cachable = False

    def __init__(self, *args, finalize_on_close=None, **kwargs):
        super().__init__(*args, **kwargs)

    @classmethod
    def _strip_protocol(cls, path):
        path = path.partition("://")[2] if "://" in path else path
        return "/" + path.strip("/") if path.strip("/") else ""

    def _open(self, path, mode="rb", **kwargs):
        if mode != "rb":
            self._check(path)
        return super()._open(path, mode, **kwargs)

    def mkdir(self, path, create_parents=True, **kwargs):
        self._check(path)
        with contextlib.suppress(FileExistsError):
            super().mkdir(path, create_parents=True, **kwargs)

    def rm_file(self, path):
        self._check(path)
        super().rm_file(path)

    def _check(self, path):
        if type(self).read_only:
            raise PermissionError(f"Forbidden: storage.objects.create on {path}")


class _Handler(http.server.BaseHTTPRequestHandler):
    """Reading, writing, listing and deleting objects, with their generations."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name, query = self._where()
        if name is None:
            self._list(query)
            return
        file = Bucket.store.get(name)
        if file is None:
            self._answer(404, b"{}")
            return
        if query.get("alt") != "media":
            self._answer(200, json.dumps(_about(name)).encode())
            return
        data, status, headers = file.getvalue(), 200, {}
        asked = self.headers.get("Range")
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first) if first else max(len(data) - int(last), 0)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
            data, status = data[start:stop], 206
        self._answer(status, data, generation=_generation_of(name), **headers)

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        name, query = self._where()
        name = f"{name or self._bucket}/{query['name']}"
        wanted = query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != _generation_of(name):
            self._answer(412, b"{}")
            return
        with Bucket().open(name, "wb") as file:
            file.write(data)
        self._answer(200, json.dumps(_about(name)).encode())

    def do_DELETE(self):
        name, _ = self._where()
        found = Bucket.store.pop(name, None)
        self._answer(404 if found is None else 204, b"")

    def _list(self, query):
        prefix = f"{self._bucket}/{query.get('prefix', '')}"
        names = sorted(n for n in Bucket.store if n.startswith(prefix))
        items = [_about(name) for name in names]
        self._answer(200, json.dumps({"items": items}).encode())

    def _where(self):
        """(path in the store, or None for the bucket; the query)."""
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        bucket, _, rest = url.path.partition("/b/")[2].partition("/o")
        self._bucket = f"/{bucket}"
        name = urllib.parse.unquote(rest.strip("/"))
        return (f"/{bucket}/{name}" if name else None), query

    def _answer(self, status, data, generation=None, **headers):
        self.send_response(status)
        if generation is not None:
            headers["x-goog-generation"] = str(generation)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def _generation_of(name):
    file = Bucket.store.get(name)
    if file is None:
        return 0
    if not hasattr(file, "generation"):
        file.generation = next(_generation)
    return file.generation


def _about(name):
    data = Bucket.store[name].getvalue()
    bucket, _, inside = name.strip("/").partition("/")
    return {
        "kind": "storage#object",
        "name": inside,
        "bucket": bucket,
        "size": str(len(data)),
        "generation": str(_generation_of(name)),
        "updated": "2026-01-01T00:00:00.000Z",
    }


@contextlib.contextmanager
def served():
    """While it lasts, gs:// means buckets in memory, here and for TensorStore."""
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    Bucket.read_only = False
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    for name in ("gs", "gcs"):
        fsspec.register_implementation(name, Bucket, clobber=True)
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "token"
    asked = gcs_utils.is_hierarchical_namespace_enabled  # of Google's own library
    gcs_utils.is_hierarchical_namespace_enabled = lambda _: False
    try:
        yield Bucket
    finally:
        gcs_utils.is_hierarchical_namespace_enabled = asked
        server.shutdown()
        server.server_close()
        for name in ("gs", "gcs"):
            _registry.pop(name, None)
