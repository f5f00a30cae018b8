"""TLS, mTLS, tokens, the health port and limits of a connection, against a real process and with real clients."""

import datetime
import http.client
import ipaddress
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.client import Client, Tls
from serving.errors import StartupError
from serving.ports.tls import CertificateFiles, credentials
from serving.ports.tokens import Tokens
from tests import tiny_ensemble
from tests.server_process import ServerProcess

ROWS = np.arange(8, dtype="<f4").reshape(2, 4)
SERVING = health_pb2.HealthCheckResponse.SERVING


@dataclass
class Authority:
    """Signs certificates for 127.0.0.1, and writes them as PEM."""

    name: str
    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.name, self.key, None)
        self.path = self.folder / f"{self.name}.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, subject: str, days: int = 1) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, private = self.folder / f"{subject}.pem", self.folder / f"{subject}.key"
        signed = self._sign(subject, key, self.certificate, days)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return certificate, private

    def _sign(
        self, subject: str, key: ec.EllipticCurvePrivateKey, issuer: x509.Certificate | None, days: int = 1
    ) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)])
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer.subject if issuer else name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
            .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
            .sign(self.key, hashes.SHA256())
        )


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority("authority", tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def mtls_server(tiny_directory: Path, authority: Authority) -> Iterator[ServerProcess]:
    certificate, key = authority.issue("server")
    with ServerProcess(
        tiny_directory, "--tls-certificate", str(certificate), "--tls-key", str(key),
        "--tls-client-ca", str(authority.path), "--health-port", "0", "--http-port", "0",
    ) as server:  # fmt: skip
        yield server


def ask(channel: grpc.Channel, **options: object) -> None:
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=ROWS.shape)
    response = GRPCInferenceServiceStub(channel).ModelInfer(request, **({"timeout": 30} | options))
    probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(2, 3)
    np.testing.assert_allclose(probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)


def code(channel: grpc.Channel, **options: object) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        ask(channel, **options)
    return caught.value.code()


def channel_credentials(authority: Authority, subject: str | None = None) -> grpc.ChannelCredentials:
    if subject is None:
        return grpc.ssl_channel_credentials(authority.path.read_bytes())
    certificate, key = authority.issue(subject)
    return grpc.ssl_channel_credentials(authority.path.read_bytes(), key.read_bytes(), certificate.read_bytes())


TRITON = """
import sys
import numpy as np
import tritonclient.grpc as triton

target, authority, key, certificate = sys.argv[1:]
client = triton.InferenceServerClient(
    target, ssl=True, root_certificates=authority, private_key=key or None, certificate_chain=certificate or None
)
assert client.is_server_ready() and client.is_model_ready("tiny")
tensor = triton.InferInput("input", [2, 4], "FP32")
tensor.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4))
for algorithm in (None, "gzip", "deflate"):
    assert client.infer("tiny", [tensor], compression_algorithm=algorithm).as_numpy("probs").shape == (2, 3)
"""


def triton(target: str, authority: Authority, key: object = "", certificate: object = "") -> None:
    command = [sys.executable, "-c", TRITON, target, authority.path, key, certificate]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_tritonclient_asks_over_tls(tiny_directory: Path, authority: Authority) -> None:
    certificate, key = authority.issue("server-tls")
    with ServerProcess(tiny_directory, "--tls-certificate", str(certificate), "--tls-key", str(key)) as server:
        triton(server.grpc, authority)
        with grpc.insecure_channel(server.grpc) as channel:
            assert code(channel, timeout=5) is grpc.StatusCode.UNAVAILABLE


def test_tritonclient_asks_over_mtls(mtls_server: ServerProcess, authority: Authority) -> None:
    certificate, key = authority.issue("triton")
    triton(mtls_server.grpc, authority, key, certificate)


def test_a_client_without_a_certificate_of_the_authority_is_refused(
    mtls_server: ServerProcess, authority: Authority, tmp_path: Path
) -> None:
    with grpc.secure_channel(mtls_server.grpc, channel_credentials(authority, "client")) as channel:
        ask(channel)
    other = Authority("other", tmp_path)
    certificate, key = other.issue("stranger")
    strange = grpc.ssl_channel_credentials(authority.path.read_bytes(), key.read_bytes(), certificate.read_bytes())
    for shown in (channel_credentials(authority), strange):
        with grpc.secure_channel(mtls_server.grpc, shown) as channel:
            assert code(channel, timeout=5) is grpc.StatusCode.UNAVAILABLE


def test_the_health_port_is_plain_and_has_nothing_but_health(mtls_server: ServerProcess) -> None:
    assert mtls_server.health is not None
    with grpc.insecure_channel(mtls_server.health) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "tiny", "inference.GRPCInferenceService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=30).status == SERVING
        assert code(channel) is grpc.StatusCode.UNIMPLEMENTED


def test_a_renewed_certificate_is_taken_up_and_a_bad_one_is_not(tiny_directory: Path, tmp_path: Path) -> None:
    old, new = (Authority(name, tmp_path) for name in ("old", "new"))
    certificate, key = old.issue("server")
    with ServerProcess(tiny_directory, "--tls-certificate", str(certificate), "--tls-key", str(key)) as server:

        def works(authority: Authority) -> bool:
            options = [("grpc.use_local_subchannel_pool", 1)]  # a connection of its own
            with grpc.secure_channel(server.grpc, channel_credentials(authority), options) as channel:
                try:
                    ask(channel, timeout=5)
                except grpc.RpcError:
                    return False
                return True

        assert (works(old), works(new)) == (True, False)
        certificate.write_text("no certificate")
        assert works(old)
        new.issue("server")
        assert (works(old), works(new)) == (False, True)
        _, errors = server.stop()
    assert "the certificate cannot be renewed, the old one stays" in errors
    assert "Traceback" not in errors


def test_the_expiry_of_the_certificate_is_a_metric_and_follows_what_can_be_used(
    tiny_directory: Path, tmp_path: Path
) -> None:
    authority = Authority("authority", tmp_path)
    certificate, key = authority.issue("server")
    with ServerProcess(tiny_directory, "--tls-certificate", str(certificate), "--tls-key", str(key)) as server:

        def expires_in_days() -> float:
            with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
                lines = response.read().decode().splitlines()
            (line,) = [line for line in lines if line.startswith("ensemble_certificate_expiry_timestamp_seconds ")]
            return (float(line.split()[1]) - time.time()) / 86400

        assert expires_in_days() == pytest.approx(1, abs=0.01)
        stranger, _ = authority.issue("stranger", days=90)
        certificate.write_bytes(stranger.read_bytes())  # does not fit the key
        assert expires_in_days() == pytest.approx(1, abs=0.01)
        authority.issue("server", days=30)
        assert expires_in_days() == pytest.approx(30, abs=0.01)


def https(server: ServerProcess, authority: Authority, subject: str | None = None) -> int | None:
    """The status; None if no connection comes about."""
    context = ssl.create_default_context(cafile=authority.path)
    if subject is not None:
        context.load_cert_chain(*authority.issue(subject))
    assert server.http is not None
    connection = http.client.HTTPSConnection(server.http, timeout=30, context=context)
    try:
        connection.request("GET", "/v2/health/live")
        return connection.getresponse().status
    except OSError:
        return None
    finally:
        connection.close()


def test_the_http_port_has_the_same_certificate_and_renews_it_as_well(tiny_directory: Path, tmp_path: Path) -> None:
    old, new = (Authority(name, tmp_path) for name in ("old", "new"))
    files = ("--tls-certificate", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key"))
    old.issue("server")
    with ServerProcess(tiny_directory, *files, "--http-port", "0") as server:
        assert (https(server, old), https(server, new)) == (200, None)
        (tmp_path / "server.pem").write_text("no certificate")
        assert https(server, old) == 200
        new.issue("server")
        assert (https(server, old), https(server, new)) == (None, 200)
        code, errors = server.stop()
    assert "the certificate cannot be renewed, the old one stays" in errors
    assert (code, "Traceback" in errors) == (0, False)


def test_the_http_port_asks_clients_for_a_certificate_as_well(mtls_server: ServerProcess, authority: Authority) -> None:
    assert https(mtls_server, authority) is None
    assert https(mtls_server, authority, "client") == 200


def test_our_client_asks_over_mtls(mtls_server: ServerProcess, authority: Authority) -> None:
    certificate, key = authority.issue("ours")
    with Client(mtls_server.grpc, "tiny", tls=Tls(authority.path, certificate, key)) as client:
        np.testing.assert_allclose(client.predict(ROWS).probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
    with Client(mtls_server.grpc, "tiny", tls=Tls(authority.path), attempts=1) as client, pytest.raises(grpc.RpcError):
        client.predict(ROWS)


def test_our_client_brings_its_token(token_server: ServerProcess) -> None:
    with Client(token_server.grpc, "tiny", token="second-token") as client:
        np.testing.assert_allclose(client.predict(ROWS).probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
    with Client(token_server.grpc, "tiny") as client, pytest.raises(grpc.RpcError) as caught:
        client.predict(ROWS)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("token", ["the-token", "another"])
def test_our_client_brings_certificate_and_token(
    tiny_directory: Path, authority: Authority, tmp_path: Path, token: str
) -> None:
    certificate, key = authority.issue("server-token")
    (tmp_path / "tokens").write_text("the-token")
    flags = {
        "tls-certificate": certificate,
        "tls-key": key,
        "tls-client-ca": authority.path,
        "tokens": tmp_path / "tokens",
    }
    mine = Tls(authority.path, *authority.issue("our-client"))
    with (
        ServerProcess(
            tiny_directory, *(part for name, path in flags.items() for part in (f"--{name}", str(path)))
        ) as server,
        Client(server.grpc, "tiny", tls=mine, token=token) as client,
    ):
        if token == "the-token":
            np.testing.assert_allclose(client.predict(ROWS).probs, tiny_ensemble.pooled_probs(ROWS), atol=1e-6)
        else:
            with pytest.raises(grpc.RpcError) as caught:
                client.predict(ROWS)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_files_that_do_not_fit_together_are_refused_at_start(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = authority.issue("one")
    _, key = authority.issue("another")
    for files in (
        CertificateFiles(certificate, key, None),
        CertificateFiles(certificate, tmp_path / "none.key", None),
        CertificateFiles(*authority.issue("fits"), key),
    ):
        with pytest.raises(StartupError, match="TLS cannot be set up from"):
            credentials(files)


@pytest.fixture(scope="module")
def token_server(tiny_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    file.write_text("# two clients\nfirst-token\n\n  second-token\n")
    with ServerProcess(tiny_directory, "--tokens", str(file)) as server:
        yield server


@pytest.mark.parametrize("header", ["Bearer first-token", "bearer second-token"])
def test_a_known_token_is_let_in(token_server: ServerProcess, header: str) -> None:
    with grpc.insecure_channel(token_server.grpc) as channel:
        ask(channel, metadata=[("authorization", header)])


@pytest.mark.parametrize("header", [None, "", "first-token", "Bearer", "Bearer third", "Basic first-token", "Bearer #"])
def test_no_other_is_and_health_needs_none(token_server: ServerProcess, header: str | None) -> None:
    metadata = [] if header is None else [("authorization", header)]
    with grpc.insecure_channel(token_server.grpc) as channel:
        assert code(channel, metadata=metadata) is grpc.StatusCode.UNAUTHENTICATED
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        with pytest.raises(grpc.RpcError) as caught:
            live(b"", timeout=30, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        half_open = channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:  # before a message has come
            half_open(iter(()), timeout=30, metadata=metadata)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(service="tiny"), timeout=30).status == SERVING


def test_calls_without_a_known_token_are_counted(token_server: ServerProcess) -> None:
    def counted() -> float:
        with urllib.request.urlopen(f"http://{token_server.metrics}/metrics") as response:
            lines = response.read().decode().splitlines()
        (line,) = [line for line in lines if line.startswith("ensemble_unauthenticated_total ")]
        return float(line.split()[1])

    before = counted()
    with grpc.insecure_channel(token_server.grpc) as channel:
        code(channel)
        code(channel, metadata=[("authorization", "Bearer wrong")])
        ask(channel, metadata=[("authorization", "Bearer first-token")])
    assert counted() == before + 2


def test_the_file_of_tokens_is_the_truth(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    file = tmp_path / "tokens"
    file.write_text("one\ntwo\n")
    tokens = Tokens(file, lambda: now)
    assert tokens.allow("Bearer one")
    file.write_text("two\nthree\n")
    assert tokens.allow("Bearer one")  # within the second
    now += 1
    assert [tokens.allow(f"Bearer {token}") for token in ("one", "two", "three")] == [False, True, True]
    file.unlink()
    now += 1
    assert not tokens.allow("Bearer two")
    assert "every request is refused" in caplog.text
    file.write_text("four")
    now += 1
    assert tokens.allow("Bearer four")
    assert "four" not in caplog.text


def test_a_file_without_a_token_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read"):
        Tokens(tmp_path / "none")
    (tmp_path / "empty").write_text("# nobody\n\n")
    with pytest.raises(StartupError, match="holds no token"):
        Tokens(tmp_path / "empty")


def resident_bytes(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def test_a_small_message_that_unpacks_to_a_large_one_is_refused_without_the_memory(tiny_directory: Path) -> None:
    """128 MiB of zeros, an eighth of a MiB on the wire, against a limit of 1 MiB."""
    with (
        ServerProcess(tiny_directory, "--max-message-bytes", str(2**20)) as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        before = resident_bytes(server)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(bytes(2**27), timeout=60, compression=grpc.Compression.Gzip)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        ask(channel)
        assert resident_bytes(server) - before < 2**25


SETTINGS, PING, GOAWAY = 4, 6, 7  # types of HTTP/2 frames


def frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, 0]) + bytes(4) + payload


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    with connection.makefile("rb") as file:
        while len(header := file.read(9)) == 9:
            yield header[3], file.read(int.from_bytes(header[:3], "big"))


@pytest.mark.parametrize(("seconds", "answer"), [("0", PING), ("300", GOAWAY)])
def test_who_pings_too_often_is_told_to_go_away(tiny_directory: Path, seconds: str, answer: int) -> None:
    with ServerProcess(tiny_directory, "--min-ping-seconds", seconds) as server:
        host, port = server.grpc.split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
            came = frames(connection)
            for i in range(20):
                ping = i.to_bytes(8, "big")
                connection.sendall(frame(PING, ping))
                kind, payload = next(each for each in came if each == (PING, ping) or each[0] == GOAWAY)
                if kind == GOAWAY:
                    break
        assert kind == answer
        assert kind == PING or b"too_many_pings" in payload


def test_an_old_connection_is_ended_and_no_request_is_lost(tiny_directory: Path) -> None:
    with (
        ServerProcess(tiny_directory, "--max-connection-age-seconds", "0.2") as server,
        grpc.insecure_channel(server.grpc) as channel,
    ):
        connected = 0

        def count(state: grpc.ChannelConnectivity) -> None:
            nonlocal connected
            connected += state is grpc.ChannelConnectivity.READY

        channel.subscribe(count, try_to_connect=True)
        deadline = time.monotonic() + 60
        while connected < 4 and time.monotonic() < deadline:
            ask(channel)
        assert connected >= 4
