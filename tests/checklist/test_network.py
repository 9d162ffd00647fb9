"""Checklist 1-6: where the server listens, and for whom."""

import hmac
import os
import re
import ssl
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import grpc
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from regnet_deploy.serving import bearer_auth

ROOT = Path(__file__).parents[2]
TOKEN = "correct-horse-battery"
QUESTIONS = [
    "/",
    "/v2",
    "/v2/models/regnet",
    "/v2/models/regnet/config",
    "/v2/models/stats",
    "/card",
    "/metrics",
    "/no-such",
]


@pytest.fixture(scope="module")
def locked(launch_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server that asks for a token."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(TOKEN + "\n")
    return launch_shared("--token-file", str(file), "--grpc-port", "0")


@pytest.fixture(scope="module")
def public(launch_shared: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server for every address, with TLS; and its certificate."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    extension = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    files = ["-addext", extension, "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True)
    options = ["--host", "0.0.0.0", "--tls-cert", str(certificate), "--tls-key", str(key), "--grpc-port", "0"]
    return launch_shared(*options, "--metrics-port", "0"), certificate


def listening(server: Any) -> set[str]:
    """Return the addresses that the server's process listens on, as the kernel writes them."""
    links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{server.pid}/fd") if entry.is_symlink()]
    inodes = {found[1] for link in links if (found := re.fullmatch(r"socket:\[(\d+)\]", link))}
    addresses = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/{server.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.add(fields[1].split(":")[0])
    return addresses


def test_01a_it_listens_on_loopback_unless_told_otherwise(server: Any):
    # gRPC's sockets are IPv6 with an IPv4 address inside.
    assert listening(server) <= {"0100007F", "0000000000000000FFFF00000100007F"}
    assert listening(server)


def test_01b_the_image_exposes_one_port():
    recipe = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^EXPOSE (.*)$", recipe, re.MULTILINE) == ["8000"]


@pytest.mark.parametrize("path", QUESTIONS)
def test_02a_without_the_token_nothing_is_said(locked: Any, path: str):
    reply = locked.get(path)
    assert reply.status == 401
    assert "bearer token" in reply.error
    assert reply.headers["www-authenticate"] == "Bearer"
    assert locked.get(path, Authorization=f"Bearer {TOKEN}").status == (404 if path == "/no-such" else 200)


def test_02b_without_the_token_nothing_is_read_or_run(locked: Any, tools: Any):
    count = locked.ask("GET", "/v2/models/regnet/stats", headers={"Authorization": f"Bearer {TOKEN}"}).json
    for path in ("/v2/models/regnet/infer", "/classify"):
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"  # and no byte of it
        assert locked.raw(head.encode()).status == 401
        assert locked.post(path, tools.infer_body(), Authorization="Bearer wrong").status == 401
    assert locked.post("/v2/models/regnet/infer", tools.infer_body(), Authorization=f"Bearer {TOKEN}").status == 200
    after = locked.ask("GET", "/v2/models/regnet/stats", headers={"Authorization": f"Bearer {TOKEN}"}).json
    assert after["model_stats"][0]["inference_count"] == count["model_stats"][0]["inference_count"] + 1


@pytest.mark.parametrize("size", [1000, 5_000_000])
def test_02i_who_sends_much_without_the_token_is_told_so(locked: Any, size: int):
    for path in ("/v2/models/regnet/infer", "/classify"):
        assert locked.post(path, bytes(size)).status == 401


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        f"Basic {TOKEN}",
        TOKEN,
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN.upper()}",
        f"Bearer {TOKEN}\xff",
        f"Bearer {TOKEN}, Bearer {TOKEN}",
    ],
)
def test_02c_what_is_not_quite_the_token_is_not_the_token(locked: Any, header: str):
    request = f"GET /v2 HTTP/1.1\r\nHost: x\r\nAuthorization: {header}\r\n\r\n"
    assert locked.raw(request.encode("latin-1")).status == 401


@pytest.mark.parametrize("tokens", [("x", TOKEN), (TOKEN, "x")])
def test_02c2_two_tokens_are_a_malformed_request(locked: Any, tokens: tuple[str, str]):
    """A proxy may have checked the other one."""
    headers = "".join(f"Authorization: Bearer {token}\r\n" for token in tokens)
    assert locked.raw(f"GET /v2 HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()).status == 400


@pytest.mark.parametrize(
    "target",
    [
        "//v2/health/live/../../models/regnet",
        "/v2/health/live/../../models/regnet",
        "/v2/health/live%2f..%2f..%2fmodels%2fregnet",
        "/v2/health/live/%2e%2e/models",
        "/./v2",
        "/v2/health/live;/v2",
        "http://x/v2/models/regnet",
        "/%76%32",
    ],
)
def test_02d_no_spelling_of_a_path_goes_round_the_token(locked: Any, target: str):
    assert locked.raw(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).status == 401


def test_02e_health_and_the_page_are_for_everybody(locked: Any):
    assert locked.get("/v2/health/live").status == 200
    assert locked.get("/v2/health/ready").status == 200
    assert locked.get("/", Accept="text/html").status == 200
    assert locked.post("/v2/health/live").status == 401  # that verb is not a question


def test_02f_the_token_is_asked_for_over_grpc_too(locked: Any):
    with triton.InferenceServerClient(locked.grpc) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        for ask in (client.get_server_metadata, client.get_model_repository_index, lambda **o: infer(client, **o)):
            for wrong in ({}, {"authorization": TOKEN}, {"authorization": f"Bearer {TOKEN}x"}):
                with pytest.raises(InferenceServerException) as error:
                    ask(headers=wrong)
                assert error.value.status() == "StatusCode.UNAUTHENTICATED"
            ask(headers={"authorization": f"Bearer {TOKEN}"})


def infer(client: Any, headers: dict[str, str]) -> Any:
    import numpy as np

    tensor = triton.InferInput("images", [1, 3, 24, 24], "FP32")
    tensor.set_data_from_numpy(np.zeros((1, 3, 24, 24), np.float32))
    return client.infer("regnet", [tensor], headers=headers)


def test_02g_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch):
    compared = []

    def compare(*both: bytes) -> bool:
        compared.append(both)
        return True

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for header in (b"Bearer a", b"Basic a", b"", None):
        bearer_auth.is_bearer(header, TOKEN)
    assert len(compared) == 4


def test_02h_a_token_of_the_environment_is_one_and_no_process_of_the_server_shows_one(
    locked: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("REGNET_DEPLOY_TOKEN", TOKEN)
    assert bearer_auth.read_token(None) == TOKEN
    for pid in (locked.pid, *locked.workers()):
        assert TOKEN not in Path(f"/proc/{pid}/cmdline").read_text()
    assert TOKEN not in locked.log


def test_03a_metrics_have_their_own_port_or_a_guard_where_strangers_come(locked: Any, public: Any):
    server, certificate = public
    context = ssl.create_default_context(cafile=str(certificate))
    apart = server.facts["metrics"].replace("0.0.0.0", "127.0.0.1")
    with urllib.request.urlopen(apart, timeout=20) as answer:
        assert b"# TYPE" in answer.read()
    for path, url in (("/metrics", f"https://localhost:{server.port}"), ("/classify", apart.removesuffix("/metrics"))):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url + path, timeout=20, context=context if "https" in url else None)
    assert locked.get("/metrics").status == 401


def test_03b_without_either_metrics_are_nowhere():
    from regnet_deploy.serving.listeners import is_loopback

    assert not any(is_loopback(address) for address in ("0.0.0.0", "::", "192.168.1.1", "10.0.0.1"))
    assert all(is_loopback(address) for address in ("127.0.0.1", "::1"))


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_04a_models_are_not_loaded_or_unloaded_by_requests(server: Any, verb: str):
    body = b'{"parameters":{"config":"{}","file:1/model.onnx":"AAAA"}}'
    assert "models are loaded from their folder" in server.post(f"/v2/repository/models/regnet/{verb}", body).error
    with triton.InferenceServerClient(server.grpc) as client, pytest.raises(InferenceServerException) as error:
        getattr(client, f"{verb}_model")("regnet")
    assert error.value.status() == "StatusCode.UNAVAILABLE"
    server.answers()


def test_04b_there_are_no_other_admin_verbs(server: Any):
    for method, path in (
        ("POST", "/v2/systemsharedmemory/region/a/register"),
        ("POST", "/v2/cudasharedmemory/region/a/register"),
        ("POST", "/v2/logging"),
        ("POST", "/v2/trace/setting"),
        ("POST", "/shutdown"),
        ("POST", "/models"),
        ("GET", "/debug"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ):
        assert server.ask(method, path).status == 404, path
    for method in ("PUT", "DELETE", "PATCH"):
        assert server.ask(method, "/v2/models/regnet").status == 405
    with grpc.insecure_channel(server.grpc) as channel:
        for name in (
            "inference.GRPCInferenceService/SystemSharedMemoryRegister",
            "inference.GRPCInferenceService/CudaSharedMemoryRegister",
            "inference.GRPCInferenceService/LogSettings",
            "inference.GRPCInferenceService/TraceSetting",
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ):
            with pytest.raises(grpc.RpcError) as error:
                channel.unary_unary(f"/{name}")(b"", timeout=20)
            assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_05_tls_is_built_in(public: Any, tools: Any):
    server, certificate = public
    context = ssl.create_default_context(cafile=str(certificate))
    url = f"https://localhost:{server.port}/v2/models/regnet/infer"
    with urllib.request.urlopen(url, tools.infer_body(), timeout=20, context=context) as answer:
        assert answer.status == 200
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with server.connect() as plain, pytest.raises(OSError):  # noqa: PT011  # an alert or a reset
        old.wrap_socket(plain)
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(f"localhost:{server.facts['grpc_port']}", credentials) as channel:
        channel.unary_unary("/inference.GRPCInferenceService/ServerLive")(b"", timeout=20)


def test_06_no_page_of_another_site_is_let_in(server: Any):
    for method, path in (("OPTIONS", "/classify"), ("OPTIONS", "/v2"), ("GET", "/v2"), ("GET", "/")):
        asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        reply = server.ask(method, path, headers=asked)
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert method == "GET" or reply.status == 405
