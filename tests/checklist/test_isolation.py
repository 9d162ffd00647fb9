"""Checklist 27-30: what the server's process may do besides answering, and what it tells of itself."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

#: Events of Python's audit hook that answering has no need of, by how they begin.
FORBIDDEN = (
    "pickle.",
    "marshal.",
    "exec",
    "compile",
    "ctypes.",
    "subprocess.",
    "pty.",
    "shutil.",
    "tempfile.",
    "urllib.",
    "http.client.",
    "ftplib.",
    "smtplib.",
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethost",
    "socket.sendto",
    "os.system",
    "os.exec",
    "os.fork",
    "os.spawn",
    "os.posix_spawn",
    "os.startfile",
    "os.kill",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "os.utime",
    "os.setxattr",
    "os.memfd_create",
)


def bad_requests(server: Any, tools: Any) -> list[Any]:
    """Send one of everything, good, bad and meant to be run; return the refusals."""
    payloads = [
        b"cos\nsystem\n(S'id'\ntR.",  # a pickle
        b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85R.",
        b"!!python/object/apply:os.system ['id']",
        b"__import__('os').system('id')",
        b"{{7*7}}${jndi:ldap://127.0.0.1/a}%(x)s{0.__class__}",
        b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        b"%!PS\n(r) file",
        b"http://127.0.0.1:1/image.jpg",
        b"file:///etc/passwd",
        tools.image()[:300],
    ]
    replies = []
    for payload in payloads:
        replies.append(server.post("/classify", payload))
        replies.append(server.infer(payload))
        replies.append(server.infer(payload, Content_Type="application/x-python-pickle"))
        text = payload.decode("latin-1")
        for change in ({"id": text}, {"name": text}, {"data": text}, {"datatype": text}, {"url": text}):
            document = tools.infer_document(**({} if "id" in change else change))
            replies.append(server.infer(json.dumps({**document, **(change if "id" in change else {})}).encode()))
        part = b'--b\r\nContent-Disposition: form-data; name="f"; filename="../../etc/passwd"\r\n\r\n'
        whole = part + payload + b"\r\n--b--\r\n"
        server.post("/classify", whole, Content_Type="multipart/form-data; boundary=b")
    for path in ("/v2/models/regnet/stats", "/card", "/", "/metrics", "/v2/models/regnet/config", "/etc/passwd"):
        replies.append(server.get(path))
    server.answers()
    return [reply for reply in replies if reply.status != 200]


def test_27_and_29_answering_runs_nothing_writes_nothing_and_calls_nobody(server: Any, tools: Any):
    """All that this process was asked for by this run of the tests counts, from its first request on."""
    bad_requests(server, tools)
    events = (server.folder / "events").read_text().splitlines()
    assert events  # the hook is at work
    nvidia = "ctypes.dlopen ('libnvidia-ml.so.1',)"  # looked for when metrics are read for the first time
    own = [event for event in events if not event.startswith("importing ") and event != nvidia]
    assert [event for event in own if event.startswith(FORBIDDEN)] == []
    for event in events:
        kind, _, rest = event.removeprefix("importing ").partition(" ")
        if kind == "open":
            path, mode = re.fullmatch(r"\((.*), ('\w+'|None), (\d+)\)", rest).groups()[:2]  # type: ignore[union-attr]
            assert mode in ("'r'", "'rb'", "None") or path.split("'")[1].split(".pyc")[0] != path.split("'")[1], event
    assert not [event for event in events if event.startswith("importing pickle.")]
    connected = {row.split()[2] for row in Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]}
    assert connected  # of the whole machine, which is why events tell and not this table


def test_28_it_runs_as_nobody_without_rights_or_a_file_to_write(launch: Any, tools: Any, exported_bundle: Path):
    """No file at all can grow: that is a root file system that is read-only, whatever is mounted."""
    if shutil.which("prlimit") is None or shutil.which("setpriv") is None:
        pytest.skip("needs prlimit and setpriv (util-linux)")
    prefix = ["prlimit", "--fsize=0", "--core=0"]
    root = os.getuid() == 0
    if root:  # one capability is left: to read, because the interpreter may lie in root's home
        reading = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]
        bounding = ["--bounding-set=-all,+dac_read_search", "--no-new-privs"]
        prefix += ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *reading, *bounding]
    with tempfile.TemporaryDirectory() as folder:  # pytest's are for their owner alone
        os.chmod(folder, 0o755)
        bundle = Path(shutil.copytree(exported_bundle, f"{folder}/bundle"))
        for path in (*bundle.iterdir(), bundle):
            path.chmod(0o555 if path.is_dir() else 0o444)
        as_nobody(launch, tools, bundle, prefix, root)


def as_nobody(launch: Any, tools: Any, bundle: Path, prefix: list[str], root: bool) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    options = ["--grpc-port", "0", "--log-requests", "--poll", "0.1"]
    server = launch(*options, path=bundle, prefix=prefix, cwd=bundle, env=environment, stderr=subprocess.PIPE)
    bad_requests(server, tools)
    assert server.post("/classify", tools.image()).status == 200
    for pid in (server.pid, *server.workers()):
        status = Path(f"/proc/{pid}/status").read_text()
        if root:
            assert re.search(r"^Uid:\s+65534\s+65534\s+65534\s+65534$", status, re.MULTILINE)
            assert int(re.search(r"^CapEff:\s+(\w+)$", status, re.MULTILINE)[1], 16) in (0, 1 << 2)  # type: ignore[index]
        assert "NoNewPrivs:\t1" in status or not root
    assert server.end() == 0
    with server.process.stderr as said:  # a pipe, because the log is a file that cannot grow either
        assert b"Traceback" not in said.read()


def test_30a_errors_say_nothing_of_the_machine(server: Any, gated: Any, tools: Any):
    replies = bad_requests(server, tools)
    assert len(replies) > 50
    gated.gate("raise")
    replies += [gated.infer(), gated.post("/classify", tools.image())]
    secrets = [
        str(ROOT),
        str(server.folder),
        "site-packages",
        "Traceback",
        'File "',
        ".py",
        "/srv",
        "0x7f",
        "onnx-fp32",
    ]
    for reply in replies:
        text = reply.body.decode()
        assert not [secret for secret in secrets if secret in text], text
        assert not re.search(r"(?<![\w/:.])/(tmp|root|home|usr|work|opt|proc)/", text), text
        assert "python" not in " ".join([*reply.headers, *reply.headers.values()]).lower()
        assert "server" not in reply.headers


@pytest.mark.parametrize(
    "injected", ["\n", "\r\n", "\x1b[2J", "\x00", "\u2028", "\x85", '"}\n{"level":"error","event":"x']
)
def test_30b_nobody_writes_lines_into_the_log(server: Any, tools: Any, injected: str):
    from urllib.parse import quote

    text = f"INJECTED{injected}forged"
    before = len(server.log.splitlines())
    server.infer(json.dumps({**tools.infer_document(), "id": text}).encode())
    server.infer(json.dumps({"inputs": [{"name": text}]}).encode())
    server.infer(json.dumps({"parameters": {"priority": text}}).encode())
    server.post(f"/v2/models/{quote(text)}/infer", b"{}")
    server.post(f"/classify?k={quote(text)}", b"")
    server.post(f"/classify?model={quote(text)}", b"", traceparent="\xff", X_Request_Id="a\tb")
    part = f'--b\r\nContent-Disposition: form-data; name="f"; filename="{text}"\r\n\r\nx\r\n--b--\r\n'
    server.post("/classify", part.encode(), Content_Type="multipart/form-data; boundary=b")
    tools.wait_until(lambda: len(server.log.split("\n")) > before + 7)
    for line in server.log.split("\n")[:-1]:
        assert line.isascii()
        assert line.isprintable()
        if line.startswith("{"):
            assert {"time", "level", "event"} <= json.loads(line).keys()
    assert '\n{"level":"error","event":"x' not in server.log


def test_30c_what_is_sent_is_not_in_the_log(server: Any, gated: Any, tools: Any):
    marker = "4815162342"
    image = tools.image() + marker.encode()
    server.post("/classify", image)
    server.post("/classify", marker.encode() * 100)
    server.infer(tools.infer_body(data=[int(marker)] * 1728))
    server.infer(json.dumps({**tools.infer_document(), "extra": marker}).encode())
    server.infer((marker * 100).encode())
    server.post("/v2/models/none/infer", marker.encode())
    reply = server.infer()
    tools.wait_until(lambda: reply.headers["x-request-id"] in server.log)
    gated.gate("raise")
    assert gated.post("/classify", image).status == 500
    tools.wait_until(lambda: "secret of" in gated.log)
    assert marker not in server.log + gated.log
