"""A push through huggingface_hub against a hub on the loopback: what is asked of it, and what is said of a refusal."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from openbook.errors import OpenBookError
from openbook.exchange.push import reserve

PUSH = """
import sys
from pathlib import Path
from openbook.exchange.push import push, reserve
reserve(sys.argv[2], sys.argv[3] == "public")
print(push(Path(sys.argv[1]), sys.argv[2], "rag_token, step 3"))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a commit needs; `asked` is what it was asked, (path, content)."""

    asked: list[tuple[str, Any]]

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        lines = [json.loads(line) for line in raw.splitlines()] if raw else []
        self.asked.append((self.path, lines))
        if "/refused" in self.path or (lines and lines[0].get("organization") == "refused"):
            self._answer({"error": "You don't have the rights"}, 403)
        elif self.path.endswith("/repos/create"):
            name = f"{lines[0].get('organization') or 'me'}/{lines[0]['name']}"
            self._answer({"url": f"http://{self.headers['host']}/{name}", "name": name, "id": name})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in lines[0]["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            url = f"http://{self.headers['host']}/me/model/commit/abc"
            self._answer({"success": True, "commitOid": "abc", "commitUrl": url, "hookOutput": ""})
        else:
            self._answer({"errors": [], "warnings": []})

    def do_GET(self) -> None:
        self.asked.append((self.path, []))
        missing = "/refused" in self.path
        there = {"id": "me/model", "private": "/seen/" not in self.path}
        self._answer({"error": "no such repository"} if missing else there, 404 if missing else 200)

    def _answer(self, content: dict[str, Any], code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub() -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    asked: list[tuple[str, Any]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Hub,), {"asked": asked}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def pushed(folder: Path, name: str, who: str, endpoint: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads where the hub is when it is imported."""
    environment = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_of_a_test", "HF_HOME": str(folder.parent / "home")}
    environment |= {"PYTHONPATH": ":".join(sys.path), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    words = [sys.executable, "-c", PUSH, str(folder), name, who]
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("who", ["private", "public"])
def test_a_folder_is_one_commit_of_a_new_repository(
    who: str, hub: tuple[str, list[tuple[str, Any]]], tmp_path: Path
) -> None:
    endpoint, asked = hub
    files = {"README.md": "# a card\n", "generator/config.json": "{}", "model.safetensors": "weights"}
    for name, content in files.items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(content)
    done = pushed(tmp_path / "out", "team/model", who, endpoint)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{endpoint}/me/model/commit/abc" in done.stdout
    created = next(lines[0] for path, lines in asked if path.endswith("/repos/create"))
    assert (created["organization"], created["name"], created["visibility"]) == ("team", "model", who)
    lines = next(lines for path, lines in asked if path == "/api/models/team/model/commit/main")
    assert lines[0]["value"]["summary"] == "rag_token, step 3"
    sent = [one["value"] for one in lines if one["key"] == "file"]
    found = {one["path"]: base64.b64decode(one["content"]).decode() for one in sent}
    assert found == files


def test_a_hub_that_refuses(hub: tuple[str, list[tuple[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    done = pushed(tmp_path / "out", "refused/model", "private", hub[0])
    assert done.returncode != 0
    assert "the hub does not take it (--push refused/model)" in done.stderr and "`hf auth login` logs in" in done.stderr


def test_a_repository_that_everybody_sees(hub: tuple[str, list[tuple[str, Any]]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/README.md").write_text("# a card\n")
    done = pushed(tmp_path / "out", "seen/model", "private", hub[0])
    assert done.returncode != 0 and "the repository is public, and would show" in done.stderr
    assert not any("/commit/" in path for path, _ in hub[1])
    assert pushed(tmp_path / "out", "seen/model", "public", hub[0]).returncode == 0


def test_offline_it_is_said_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OpenBookError, match=r"HF_HUB_OFFLINE is set: nothing can be pushed \(--push\)"):
        reserve("team/model")
