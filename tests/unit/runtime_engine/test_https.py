"""Models from a web server: a real TLS server on loopback with a certificate of its own."""

import datetime as dt
import http.server
import ipaddress
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from llmos_operator.clock import FakeClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.runtime.ipc.messages import Load
from llmos_operator.runtime.jobs.data import Data
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.loader.sources import resolve

TOKEN = "Bearer " + "t" * 8


def a_certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "models")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


class Site:
    """Files by path; `cut` paths end early once, `moved` ones redirect; every request is remembered."""

    def __init__(self, certificate):
        self.files, self.cut, self.moved, self.seen, self.token = {}, set(), {}, [], ""
        self.ranges = True
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.answer(self)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"https://127.0.0.1:{self.server.server_port}"

    def answer(self, request):
        path = request.path
        self.seen.append((path, request.headers.get("Range"), request.headers.get("Authorization")))
        if self.token and request.headers.get("Authorization") != self.token:
            return request.send_error(401)
        if path in self.moved:
            request.send_response(302)
            request.send_header("Location", self.moved[path])
            return request.end_headers()
        if path not in self.files:
            return request.send_error(404)
        body = self.files[path]
        asked = request.headers.get("Range") if self.ranges else None
        first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
        start, end = int(first), min(len(body), int(last or len(body)) + 1)
        request.send_response(206 if asked else 200)
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(body)}")
        request.send_header("Content-Length", str(end - start))
        request.end_headers()
        probed = not self.ranges and request.headers.get("Range")
        if path in self.cut and end - start > 1 and not probed:
            self.cut.discard(path)
            end = start + (end - start) // 2
        request.wfile.write(body[start:end])
        return None


@pytest.fixture
def site(tmp_path, monkeypatch):
    certificate = a_certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    made = Site(certificate)
    made.files = {
        "/m/config.json": b"{}",
        "/m/model.safetensors": bytes(range(256)) * 40,
        "/m/tokenizer.json": b"[]",
    }
    yield made
    made.server.shutdown()
    made.server.server_close()


def fetch(site, path="/m", **options):
    stages = Stages(FakeClock(), lambda _: None)
    return resolve(Load(site.url + path, **options), stages)


def test_a_folder_is_fetched_once(site, tmp_path):
    found = fetch(site, cache_dir=str(tmp_path))
    assert (found.path / "model.safetensors").read_bytes() == site.files["/m/model.safetensors"]
    assert sorted(file.name for file in found.path.iterdir()) == [
        ".listing.json", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert found.fetched == len(site.files["/m/model.safetensors"]) + 4
    count = len(site.seen)
    assert fetch(site, cache_dir=str(tmp_path)).fetched == 0
    assert len(site.seen) == count


def test_a_broken_download_goes_on_where_it_stopped(site, tmp_path):
    site.cut.add("/m/model.safetensors")
    found = fetch(site, cache_dir=str(tmp_path))
    assert (found.path / "model.safetensors").read_bytes() == site.files["/m/model.safetensors"]
    assert ("/m/model.safetensors", "bytes=5120-10239", None) in site.seen


def test_a_server_without_parts_sends_a_file_whole_or_it_does_not_count(site, tmp_path):
    site.ranges = False
    site.cut.add("/m/model.safetensors")
    with pytest.raises(Retryable, match="ended after"):
        fetch(site, cache_dir=str(tmp_path))
    found = fetch(site, cache_dir=str(tmp_path))
    assert (found.path / "model.safetensors").read_bytes() == site.files["/m/model.safetensors"]


def test_shards_named_by_an_index_are_fetched_and_paths_are_not(site, tmp_path):
    site.files["/m/model.safetensors.index.json"] = b'{"weight_map": {"a": "one.safetensors"}}'
    site.files["/m/one.safetensors"] = b"1"
    assert (fetch(site, cache_dir=str(tmp_path)).path / "one.safetensors").read_bytes() == b"1"
    site.files["/n/config.json"] = b"{}"
    site.files["/n/model.safetensors.index.json"] = b'{"weight_map": {"a": "../../evil"}}'
    with pytest.raises(Permanent, match="no plain file name"):
        fetch(site, "/n", cache_dir=str(tmp_path))


def test_a_single_gguf_is_a_file(site, tmp_path):
    site.files["/g/m.gguf"] = b"GGUF"
    assert (fetch(site, "/g/m.gguf", cache_dir=str(tmp_path)).path / "m.gguf").read_bytes() == b"GGUF"


def test_what_is_not_there_and_what_is_not_allowed(site, tmp_path):
    with pytest.raises(Permanent) as caught:
        fetch(site, "/none", cache_dir=str(tmp_path))
    assert caught.value.reason == "ModelNotFound"
    site.token = TOKEN
    with pytest.raises(Permanent) as caught:
        fetch(site, cache_dir=str(tmp_path))
    assert caught.value.reason == "AccessDenied"
    assert fetch(site, cache_dir=str(tmp_path), token=TOKEN.removeprefix("Bearer ")).fetched > 0


def test_a_redirect_may_not_leave_https(site, tmp_path):
    site.moved["/m/config.json"] = "http://127.0.0.1:9/config.json"
    with pytest.raises(Permanent, match="redirects away from https") as caught:
        fetch(site, cache_dir=str(tmp_path))
    assert caught.value.reason == "SourceNotAllowed"


def test_the_token_stays_with_the_host_it_is_for(site, tmp_path):
    site.moved["/m/config.json"] = site.url.replace("127.0.0.1", "localhost") + "/elsewhere"
    with pytest.raises(
        (Retryable, Permanent)
    ):  # the certificate is for the address alone, so the hop itself fails
        fetch(site, cache_dir=str(tmp_path), token="secret")
    assert all(path != "/elsewhere" or token is None for path, _, token in site.seen)


def test_errors_show_no_query(site, tmp_path):
    with pytest.raises(Permanent) as caught:
        fetch(site, "/none/m.gguf?signature=abc", cache_dir=str(tmp_path))
    assert "abc" not in str(caught.value)


def test_the_input_of_a_run_is_fetched_whole_or_not_at_all(site, tmp_path):
    site.files["/data/in%20put.jsonl"] = b'{"a": 1}\n' * 9
    site.cut.add("/data/in%20put.jsonl")
    data, uri = Data(tmp_path / "scratch"), f"{site.url}/data/in%20put.jsonl"
    with pytest.raises(Retryable, match=r"batch\.input\.uri: reading .* failed: the connection ended"):
        data.readable(uri, "batch.input.uri")
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    path = data.readable(uri, "batch.input.uri")
    # The name is the run's own, never the address's.
    assert (path.name, path.read_bytes()) == ("data", site.files["/data/in%20put.jsonl"])


def test_input_that_is_not_there_is_told_without_its_query(site, tmp_path):
    with pytest.raises(Permanent) as refused:
        Data(tmp_path).readable(f"{site.url}/absent?signature=hunter2", "batch.input.uri")
    assert refused.value.reason == "DataNotFound"
    assert "hunter2" not in str(refused.value)
