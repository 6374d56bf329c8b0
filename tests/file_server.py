"""An ordinary web server on this machine: files with ranges, hashes announced, and everything that can go wrong."""

import base64
import hashlib
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FileServer:
    def __init__(self):
        self.files = {}  # path -> bytes
        self.announce = {}  # path -> headers, beside the ETag
        self.status = None  # answer everything with this status
        self.cuts = []  # break the connection after so many bytes of a body, one entry a request
        self.ignore_ranges = self.no_head = False
        self.slow = 0.0  # seconds between pieces of a body
        self.requests = []  # (method, path, range)
        handler = type("Handler", (_Handler,), {"files": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def downloads(self):
        return [path for method, path, _ in self.requests if method == "GET"]

    def announce_google_hash(self, path, content=None, *, composite=False):
        """What Google Cloud Storage sends, for composite objects without the MD5."""
        content = content or self.files[path]
        crc32c = base64.b64encode(_crc32c(content).to_bytes(4, "big")).decode()
        md5 = base64.b64encode(hashlib.md5(content).digest()).decode()
        self.announce[path] = {"x-goog-hash": f"crc32c={crc32c}" + ("" if composite else f",md5={md5}")}

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def _crc32c(content):
    """CRC-32C from its definition (RFC 3720, appendix B.4): the reflected polynomial 0x82F63B78."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    crc = 0xFFFFFFFF
    for byte in content:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    files: FileServer

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        server = self.files
        asked = self.headers.get("Range")
        server.requests.append((self.command, self.path, asked))
        content = server.files.get(self.path)
        status = 405 if server.no_head and not body else server.status or (200 if content is not None else 404)
        if status != 200:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        if asked and not server.ignore_ranges:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked).group(1))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'} | server.announce.get(self.path, {})
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self._send(content[start:])

    def _send(self, payload):
        server = self.files
        if server.cuts:
            self.wfile.write(payload[: server.cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        step = len(payload) if not server.slow else 100_000
        for i in range(0, len(payload), max(step, 1)):
            time.sleep(server.slow)
            self.wfile.write(payload[i : i + step])
