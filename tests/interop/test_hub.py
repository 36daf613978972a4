"""Upload of an export: to a local server in place of the Hugging Face Hub."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from diffusion_lab.errors import UserError
from diffusion_lab.interop import hub


class Hub(BaseHTTPRequestHandler):
    """The calls of the hub that an upload makes: create a repository, select the way of each file, store it, commit."""

    files: dict[str, bytes]
    stored: dict[str, bytes]
    headers_seen: list[str | None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.headers_seen.append(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            name = json.loads(body)["name"]
            self.answer({"url": f"{self.address}/me/{name}", "id": f"me/{name}"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
            files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = [{"oid": o["oid"], "size": o["size"], "actions": self.upload(o["oid"])} for o in objects]
            self.answer({"transfer": "basic", "objects": actions}, "application/vnd.git-lfs+json")
        elif "/commit/" in self.path:
            self.commit([json.loads(line) for line in body.decode().splitlines()])
            self.answer({"commitUrl": f"{self.address}/me/model/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.answer({})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.stored[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_GET(self) -> None:
        self.answer({})

    def upload(self, oid: str) -> dict[str, Any]:
        return {"upload": {"href": f"{self.address}/store/{oid}"}}

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]

    def answer(self, content: dict[str, Any], kind: str = "application/json") -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @property
    def address(self) -> str:
        port: int = self.server.server_port  # type: ignore[attr-defined]
        return f"http://127.0.0.1:{port}"

    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A hub on this machine, which the client uses with a token."""
    handler = type("OneHub", (Hub,), {"files": {}, "stored": {}, "headers_seen": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    yield handler
    running.shutdown()
    running.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "unet").mkdir()
    (tmp_path / "README.md").write_text("---\nlibrary_name: diffusers\n---\n\n# model\n")
    (tmp_path / "unet" / "weights.safetensors").write_bytes(bytes(range(256)) * 40)
    return tmp_path


@pytest.mark.filterwarnings("ignore:Use 'content=.*:DeprecationWarning")  # huggingface_hub calls httpx in an old way
def test_a_folder_is_uploaded_with_its_large_files(server: type[Hub], folder: Path) -> None:
    hub.require_hub("me/model")
    assert hub.push(folder, "me/model", private=True).endswith("/me/model")
    names = {"README.md", "unet/weights.safetensors"}
    assert server.files.keys() == names
    assert all(server.files[name] == (folder / name).read_bytes() for name in names)
    assert "Bearer hf_secret" in server.headers_seen


def test_an_upload_without_a_token_or_a_network_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"`push` requires a token .* HF_TOKEN.*, got push=me/model and no token"):
        hub.require_hub("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"`push` must be null if HF_HUB_OFFLINE disables the access .*, got me/model"):
        hub.require_hub("me/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be uploaded to me/model: .*; the folder is complete"):
        hub.push(folder, "me/model", private=True)
