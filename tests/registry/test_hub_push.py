"""`prm pairs push hf://...` through the hub's own client, against a stand-in of the hub's protocol on loopback."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from prmkit.errors import ConfigError
from registry import Card
from registry.hub_push import parse_hub_url


class Hub(BaseHTTPRequestHandler):
    """What pushes need of the hub: repositories, pre-upload, LFS uploads, commits, trees and tags."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def content(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_GET(self):
        hub = self.server
        if found := re.match(r"/api/models/([^/]+/[^/]+)/tree/", self.path):
            files = hub.repositories[found[1]]["files"]
            return self.answer([{"type": "file", "path": p, "size": len(b), "oid": "0"} for p, b in files.items()])
        if found := re.match(r"/api/models/([^/]+/[^/?]+)", self.path):
            if found[1] not in hub.repositories:
                return self.answer({"error": "Repository not found"}, 404)
            files = hub.repositories[found[1]]["files"]
            return self.answer({"id": found[1], "sha": "0" * 40, "siblings": [{"rfilename": p} for p in files]})
        return self.answer({"error": f"no GET {self.path}"}, 404)

    def do_PUT(self):
        self.server.blobs[self.path.rpartition("/")[2]] = self.content()
        self.answer({})

    def do_POST(self):
        hub, body = self.server, self.content()
        if self.headers.get("Authorization") != "Bearer right":
            return self.answer({"error": "Invalid credentials"}, 401)
        if self.path == "/api/repos/create":
            value = json.loads(body)
            name = f"{value['organization']}/{value['name']}"
            new = {"files": {".gitattributes": b""}, "visibility": value.get("visibility"), "tags": [], "commits": []}
            if name in hub.repositories:
                return self.answer({"error": "You already created this model repo", "url": f"{hub.url}/{name}"}, 409)
            hub.repositories[name] = new
            return self.answer({"url": f"{hub.url}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = re.match(r"(?:/api/models)?/([^/]+/[^/.]+)", self.path)[1]
        repository = hub.repositories[name]
        if "/commit/" in self.path:
            url = f"{hub.url}/{name}/commit/1"
            self.commit(repository, map(json.loads, body.splitlines()))
            return self.answer({"commitUrl": url, "commitOid": "1" * 40, "success": True})
        return self.answer(self.files(repository, json.loads(body)))

    def files(self, repository, value):
        """Where files are to be put, and tags."""
        if "/preupload/" in self.path:
            modes = {True: "lfs", False: "regular"}
            paths = [file["path"] for file in value["files"]]
            common = {"shouldIgnore": False, "oid": None}
            return {"files": [{"path": p, "uploadMode": modes[p.endswith(".safetensors")], **common} for p in paths]}
        if self.path.endswith("/info/lfs/objects/batch"):
            place = f"{self.server.url}/lfs/"
            objects = [{**o, "actions": {"upload": {"href": place + o["oid"]}}} for o in value["objects"]]
            return {"transfer": "basic", "objects": objects}
        assert "/tag/" in self.path
        repository["tags"].append(value["tag"])
        return {}

    def commit(self, repository, items):
        for item in items:
            value = item["value"]
            match item["key"]:
                case "header":
                    repository["commits"].append(value["summary"])
                case "file":
                    repository["files"][value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    repository["files"][value["path"]] = self.server.blobs[value["oid"]]
                case "deletedFile":
                    del repository["files"][value["path"]]


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.repositories, server.blobs = {}, {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def prm(hub, registry, tmp_path):
    """Runs `prm pairs` in a process of its own, as the client reads its settings when it is imported."""

    def run(*arguments, **environment):
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "right", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path)}
        command = [sys.executable, "-m", "prmkit.cli", "pairs", *arguments, "--registry", registry.storage.url]
        settings |= {"PRMKIT_CACHE": str(tmp_path / "cache"), **environment}
        return subprocess.run(command, env=kept | settings, capture_output=True, text=True, check=False)

    return run


def test_a_pair_becomes_two_repositories(hub, registry, make_publication, prm):
    registry.publish(make_publication(card=Card(license="mit", base_models=("org/base",))))
    registry.publish(make_publication(weights=1, parent="math@1"))
    pushed = prm("push", "hf://team/sums", "math@1", "--private")
    assert (pushed.returncode, pushed.stderr) == (0, "")
    assert pushed.stdout.splitlines() == [f"math@1 in {hub.url}/team/sums-{member}" for member in ("policy", "prm")]
    hub.repositories["team/sums-prm"]["files"]["left_over.json"] = b"{}"
    assert prm("push", "hf://team/sums", "math@2").returncode == 0
    for member in ("policy", "prm"):
        repository = hub.repositories[f"team/sums-{member}"]
        assert (repository["visibility"], repository["tags"]) == ("private", ["v1", "v2"])
        assert repository["commits"] == ["math@1", "math@2"]
        manifest = registry.manifest("math@2")
        wanted = {file.path for file in manifest.files(member)} | {"README.md", "pair.json", ".gitattributes"}
        assert set(repository["files"]) == wanted
        model = registry.checkout("math@2")
        assert (
            repository["files"]["model.safetensors"]
            == ((model.policy if member == "policy" else model.prm) / "model.safetensors").read_bytes()
        )
        card = repository["files"]["README.md"].decode()
        assert 'license: "mit"\nbase_model: ["org/base"]' in card  # from the version it was made from
        assert "team/sums-" in card


REFUSALS = {
    "no token": ((), {"HF_TOKEN": "wrong"}, "the hub at .* does not take it: .*401.*HF_TOKEN, or `hf auth login`"),
    "offline": ((), {"HF_HUB_OFFLINE": "1"}, "the hub at .* does not take it: .*offline"),
    "no hub": ((), {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub at http://127.0.0.1:9 does not take it"),
    "ancestors": (("--ancestors",), {}, "--ancestors: got True; accepted: nothing with hf://"),
}


@pytest.mark.parametrize("case", REFUSALS.values(), ids=REFUSALS)
def test_refusals_are_one_line(case, hub, registry, make_publication, prm):
    options, environment, match = case
    registry.publish(make_publication())
    run = prm("push", "hf://team/sums", "math@1", *options, **environment)
    assert run.returncode == 2
    assert re.search(match, run.stderr), run.stderr
    assert run.stderr.count("\n") == 1
    assert not hub.repositories


def test_a_repository_of_something_else_is_left_alone(hub, registry, make_publication, prm):
    registry.publish(make_publication())
    mine = {"files": {"thesis.tex": b""}, "tags": [], "commits": []}
    hub.repositories["team/sums-prm"] = mine
    run = prm("push", "hf://team/sums", "math@1")
    assert (run.returncode, mine["files"]) == (2, {"thesis.tex": b""})
    assert "team/sums-prm: holds something else (thesis.tex)" in run.stderr
    assert not hub.repositories["team/sums-policy"]["commits"]


@pytest.mark.parametrize("url", ["hf://", "hf://name", "hf://a/b/c", "hf://a/", "hf://../x", "hf://a b/c"])
def test_places_on_the_hub(url):
    with pytest.raises(ConfigError, match=r"REMOTE: got .*; accepted: hf://ORGANISATION/NAME"):
        parse_hub_url(url)


def test_what_only_the_hub_or_only_a_registry_can_do(prm, registry, make_publication):
    registry.publish(make_publication())
    run = prm("push", "elsewhere", "math@1", "--private")
    assert (run.returncode, "--private" in run.stderr) == (2, True)
    run = prm("fetch", "hf://team/sums", "math@1")
    assert (run.returncode, "--policy ORG/NAME-policy" in run.stderr) == (2, True)
