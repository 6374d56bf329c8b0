"""The half of the Hub on this machine that takes uploads: what huggingface_hub's create_repo and upload_folder need.

    create        POST /api/repos/create, 409 where there is one
    validate-yaml POST /api/validate-yaml, the front matter of a README.md
    info          GET  /api/models/<org>/<repo>[/revision/<branch>]
    paths-info    POST /api/models/<org>/<repo>/paths-info/<branch>
    preupload     POST /api/models/<org>/<repo>/preupload/<branch>: which files are large, what the branch has of them
    batch         POST /<org>/<repo>.git/info/lfs/objects/batch: where large files go; nowhere if they are there
    put           PUT  /objects/<org>/<repo>/<sha256>: a large file
    verify        POST /<org>/<repo>.git/info/lfs/objects/verify
    commit        POST /api/models/<org>/<repo>/commit/<branch>
    xet-token     GET  /api/models/<org>/<repo>/xet-write-token/<branch>
    xet           POST /v1/xorbs/..., /v1/shards

A client that has hf_xet sends large files by Xet unless HF_HUB_DISABLE_XET is set; whatever comes that way is accepted,
but it cannot be downloaded: only git-lfs is understood to the last byte.
"""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote

import yaml

TOKEN = "hf_writer"  # the token of a user named writer, a member of org

_REPOSITORY = r"(?P<name>[^/]+/[^/]+)"
_ROUTES = {
    "create": r"POST /api/repos/create",
    "validate-yaml": r"POST /api/validate-yaml",
    "info": rf"GET /api/models/{_REPOSITORY}(?:/revision/(?P<branch>[^/]+))?",
    "paths-info": rf"POST /api/models/{_REPOSITORY}/paths-info/(?P<branch>[^/]+)",
    "preupload": rf"POST /api/models/{_REPOSITORY}/preupload/(?P<branch>[^/]+)",
    "batch": rf"POST /{_REPOSITORY}\.git/info/lfs/objects/batch",
    "put": rf"PUT /objects/{_REPOSITORY}/(?P<sha256>[0-9a-f]{{64}})",
    "verify": rf"POST /{_REPOSITORY}\.git/info/lfs/objects/verify",
    "commit": rf"POST /api/models/{_REPOSITORY}/commit/(?P<branch>[^/]+)",
    "xet-token": rf"GET /api/models/{_REPOSITORY}/xet-write-token/(?P<branch>[^/]+)",
    "xet": r"POST /v1/(?:xorbs/default/[0-9a-f]{64}|shards)",
}
_FREE = ("info", "paths-info", "put", "validate-yaml", "xet")  # reading needs no token; addresses can be secret


@dataclass
class Uploads:
    """What was sent, by whom it may be sent, and what goes wrong."""

    writers: dict[str, set[str]] = field(default_factory=lambda: {TOKEN: {"org", "writer"}})  # token -> namespaces
    failures: dict[tuple[str, str], int] = field(default_factory=dict)  # (step, repository) -> status
    steps: list[tuple[str, str]] = field(default_factory=list)  # (step, repository), in the order of the requests
    visibility: dict[str, str] = field(default_factory=dict)  # of every repository that was created
    sent: list[tuple[str, str]] = field(default_factory=list)  # (repository, SHA-256) of every large file that came
    commits: list[tuple[str, str, list[str]]] = field(default_factory=list)  # (repository, branch, files)
    objects: dict[tuple[str, str], bytes] = field(default_factory=dict)  # (repository, SHA-256) -> large file
    by_xet: set[str] = field(default_factory=set)  # repositories whose large files may come by Xet


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status, message, code=None, **content):
        super().__init__(message)
        self.status, self.code, self.content = status, code, {"error": message} | content


class UploadHandler(BaseHTTPRequestHandler):
    """Needs ``hub``, with its ``uploads``, ``repositories``, ``add`` and ``url``."""

    def do_POST(self):
        self.answer_api()

    def do_PUT(self):
        self.answer_api()

    def answer_api(self):
        body = self._body()
        try:
            status, content = 200, self._route(body)
        except RefusedError as refused:
            status, content = refused.status, refused.content
            headers = {"X-Error-Message": str(refused)} | ({"X-Error-Code": refused.code} if refused.code else {})
        else:
            headers = {}
        payload = json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Type": "application/json", "Content-Length": len(payload)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(payload)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _route(self, body):
        asked = f"{self.command} {self.path.partition('?')[0]}"
        matches = {step: match for step, pattern in _ROUTES.items() if (match := re.fullmatch(pattern, asked))}
        if not matches:
            raise RefusedError(404, f"there is no {asked}")
        ((step, match),) = matches.items()
        found = {name: unquote(value) for name, value in match.groupdict(default="main").items()}
        if step == "create":
            wanted = json.loads(body)
            found["name"] = f"{wanted['organization'] or 'writer'}/{wanted['name']}"
        name = found.pop("name", None)
        uploads = self.hub.uploads
        uploads.steps.append((step, name))
        if status := uploads.failures.get((step, name)):
            raise RefusedError(status, "told to fail")
        if step not in _FREE:
            self._check_writer(name)
        if name and step != "create" and name not in self.hub.repositories:
            raise RefusedError(404 if self._token() in uploads.writers else 401, "Repository not found", "RepoNotFound")
        answer = getattr(self, "_" + step.replace("-", "_"))
        return answer(name, body, **found) if name else answer(body)

    def _token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _check_writer(self, name):
        token, writers = self._token(), self.hub.uploads.writers
        if not token:
            raise RefusedError(401, "Invalid username or password.")
        if token not in writers:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        if name.partition("/")[0] not in writers[token]:
            raise RefusedError(403, "You don't have the rights to write there")

    def _create(self, name, body):
        if name in self.hub.repositories:
            raise RefusedError(409, "You already created this model repo", url=f"{self.hub.url}/{name}")
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})
        self.hub.uploads.visibility[name] = json.loads(body)["visibility"]
        return {"url": f"{self.hub.url}/{name}"}

    def _validate_yaml(self, body):
        match = re.match(r"---\n(.*?\n)---\n", json.loads(body)["content"], re.DOTALL)
        if match is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            yaml.safe_load(match[1])
        except yaml.YAMLError as error:
            raise RefusedError(400, "Invalid metadata", errors=[{"message": str(error)}]) from None
        return {"errors": [], "warnings": []}

    def _files(self, name, branch):
        repository = self.hub.repositories[name]
        commit = repository.branches.get(branch)
        if commit is None:
            raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return commit, repository.commits[commit]

    def _info(self, name, body, branch):
        return {"id": name, "sha": self._files(name, branch)[0]}

    def _paths_info(self, name, body, branch):
        files = self._files(name, branch)[1]
        return [_described(path, files[path]) for path in parse_qs(body.decode())["paths"] if path in files]

    def _preupload(self, name, body, branch):
        files = self._files(name, branch)[1]
        answers = []
        for file in json.loads(body)["files"]:
            path = file["path"]
            answer = {"path": path, "uploadMode": "lfs" if _is_large(path) else "regular", "shouldIgnore": False}
            if path in files:
                answer["oid"] = _sha256(files[path]) if _is_large(path) else _git_sha1(files[path])
            answers.append(answer)
        return {"files": answers}

    def _stored(self, name):
        """Every large file of a repository by its SHA-256, whether a commit has it or not."""
        commits = self.hub.repositories[name].commits.values()
        found = {_sha256(files[path]): files[path] for files in commits for path in files if _is_large(path)}
        return found | {sha256: content for (of, sha256), content in self.hub.uploads.objects.items() if of == name}

    def _batch(self, name, body):
        objects, stored = [], self._stored(name)
        for wanted in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.url}/objects/{name}/{wanted['oid']}"},
                "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/objects/verify"},
            }
            objects.append(wanted if wanted["oid"] in stored else wanted | {"actions": actions})
        return {"transfer": "basic", "objects": objects}

    def _put(self, name, body, sha256):
        if _sha256(body) != sha256:
            raise RefusedError(400, "the content is not what its name says")
        self.hub.uploads.sent.append((name, sha256))
        self.hub.uploads.objects[name, sha256] = body
        return {}

    def _verify(self, name, body):
        said = json.loads(body)
        if len(self._stored(name).get(said["oid"], b"")) != said["size"]:
            raise RefusedError(422, "the object did not arrive")
        return {}

    def _commit(self, name, body, branch):
        parent, files = self._files(name, branch)
        changed, stored = {}, self._stored(name)
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in stored and name not in self.hub.uploads.by_xet:
                    raise RefusedError(400, f"{value['path']} was not uploaded")
                changed[value["path"]] = stored.get(value["oid"], b"")
        commit = hashlib.sha1(parent.encode() + body).hexdigest()
        repository = self.hub.repositories[name]
        repository.commits[commit] = files | changed
        repository.branches[branch] = commit
        self.hub.uploads.commits.append((name, branch, sorted(changed)))
        return {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"}

    def _xet_token(self, name, body, branch):
        self.hub.uploads.by_xet.add(name)
        return {"accessToken": "xet", "exp": 2**33, "casUrl": self.hub.url}

    def _xet(self, body):
        return {"was_inserted": True, "result": 1}


def _described(path, content):
    description = {"type": "file", "path": path, "size": len(content), "oid": _git_sha1(content)}
    if _is_large(path):
        description["lfs"] = {"oid": _sha256(content), "size": len(content), "pointerSize": 134}
    return description


def _is_large(path):
    return path.endswith(".safetensors")


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _git_sha1(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
