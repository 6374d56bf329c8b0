"""A Hub on this machine: a real HTTP server that speaks what huggingface_hub's downloads need.

HEAD and GET on ``/<org>/<repo>/resolve/<revision>/<file>`` with ETag, X-Repo-Commit, Content-Length and ranges.
Each repository can be told to fail. What uploads need is in hub_uploads.
"""

import hashlib
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from hub_uploads import UploadHandler, Uploads

MAIN_COMMIT = "a" * 40


@dataclass
class Repository:
    """Files by commit, branches, and what goes wrong when they are asked for."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str] = field(default_factory=lambda: {"main": MAIN_COMMIT})
    status: int | None = None  # answer everything with this status
    error_code: str | None = None  # and this X-Error-Code
    cut_after: int | None = None  # break the connection after so many bytes of a body, ...
    cuts_left: int = 0  # ... so many times
    announce: dict[str, str] = field(default_factory=dict)  # file -> ETag other than the content's hash
    hang: float = 0.0  # seconds before answering
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, file, range


class HubServer:
    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.uploads = Uploads()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def add(self, name, files, **behaviour):
        self.repositories[name] = Repository({MAIN_COMMIT: files}, **behaviour)
        return self.repositories[name]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class _Handler(UploadHandler, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go one by one; the body would wait for an acknowledgement
    hub: HubServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        if self.path.startswith("/api/"):
            self.answer_api()
        else:
            self._answer(body=True)

    def _fail(self, status, code=None):
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, body):
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not match:
            return self._fail(404)
        name, revision, filename = match.groups()
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self._fail(401, "RepoNotFound")
        repository.requests.append((self.command, filename, self.headers.get("Range")))
        time.sleep(repository.hang)
        if repository.status:
            return self._fail(repository.status, repository.error_code)
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return self._fail(404, "RevisionNotFound")
        content = repository.commits[commit].get(filename)
        if content is None:
            return self._fail(404, "EntryNotFound")
        return self._send(repository, commit, filename, content, body)

    def _send(self, repository, commit, filename, content, body):
        start = 0
        if range_header := self.headers.get("Range"):
            start = int(re.fullmatch(r"bytes=(\d+)-.*", range_header).group(1))
        large = filename.endswith(".safetensors")
        etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(content).hexdigest()
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{repository.announce.get(filename, etag)}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        payload = content[start:]
        if repository.cut_after is not None and repository.cuts_left > 0 and large:
            repository.cuts_left -= 1
            self.wfile.write(payload[: repository.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(payload)
