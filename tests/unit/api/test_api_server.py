"""Where the server listens, and for whom."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from api_fakes import FakeRuns, backing, spec

from supervisor import errors
from supervisor.api.auth import TlsFiles
from supervisor.api.server import Server, start_server
from supervisor.model import (
    Peer,
)
from supervisor.v1 import run_pb2 as pb
from supervisor.v1 import (
    run_pb2_grpc,
)


async def test_the_socket_is_for_root_and_its_group(server: Server, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "run/s.sock").stat().st_mode) == 0o660
    await server.stop(0)
    assert not (tmp_path / "run/s.sock").exists()


async def test_a_living_daemons_socket_is_left_alone(server: Server, runs: FakeRuns, stub: Any) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), server.addresses)
    assert caught.value.reason == "ADDRESS_IN_USE"
    assert (await stub.Execute(spec())).outcome == pb.OUTCOME_EXITED


async def test_a_dead_daemons_socket_is_replaced(runs: FakeRuns, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    started = await start_server(backing(runs), [f"unix:{path}"])
    async with grpc.aio.insecure_channel(started.addresses[0]) as channel:
        assert (await run_pb2_grpc.RunServiceStub(channel).Execute(spec())).exit_code == 0
    await started.stop(0)


CONNECT_AT_ONCE = """
import socket, sys
print("looking", flush=True)
while True:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(sys.argv[1])
        except FileNotFoundError:
            continue
        break
"""


async def test_whoever_sees_the_socket_can_connect(runs: FakeRuns, tmp_path: Path) -> None:
    for n in range(20):
        path = tmp_path / f"s{n}.sock"
        client = await asyncio.create_subprocess_exec(
            sys.executable, "-c", CONNECT_AT_ONCE, str(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert client.stdout is not None and await client.stdout.readline()
        started = await start_server(backing(runs), [f"unix:{path}"])
        _, said = await client.communicate()
        assert client.returncode == 0, said.decode()
        assert os.listdir(tmp_path) == [path.name]
        await started.stop(0)
        assert not os.listdir(tmp_path)


async def test_a_name_as_long_as_a_socket_may_have(runs: FakeRuns, tmp_path: Path) -> None:
    path = tmp_path / ("s" * (107 - len(str(tmp_path)) - 1))
    started = await start_server(backing(runs), [f"unix:{path}"])
    assert os.listdir(tmp_path) == [path.name]
    await started.stop(0)


async def test_only_the_daemons_own_directory_gets_a_new_mode(runs: FakeRuns, tmp_path: Path) -> None:
    for name, mode, own, wanted in (
        ("own", 0o755, True, 0o750),
        ("other", 0o755, False, 0o755),
        ("t", 0o1777, True, 0o1777),
    ):
        directory = tmp_path / name
        directory.mkdir()
        directory.chmod(mode)
        runtime_dir = str(directory if own else tmp_path)
        started = await start_server(backing(runs), [f"unix://{directory}/s.sock"], runtime_dir=runtime_dir)
        await started.stop(0)
        assert stat.S_IMODE(directory.stat().st_mode) == wanted, name


@pytest.mark.parametrize(
    "address",
    [
        *("unix-abstract:x", "unix:@x", "unix:///a\0b", "unix:relative", "unix:///dir/", "unix:///" + "a" * 120),
        *("unix:///dev/null", "localhost", "localhost:x", "localhost:99999", ":50051"),
    ],
)
async def test_addresses_that_cannot_be(runs: FakeRuns, address: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), [address])
    assert caught.value.field == "listen"


@pytest.mark.parametrize("address", ["localhost", "tcp://localhost", "tcp://:50051", "grpc://localhost:x"])
async def test_what_is_no_address_is_told_what_is_one(runs: FakeRuns, address: str) -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), [address])
    assert caught.value.message == f"{address!r} is neither unix:///PATH nor tcp://HOST:PORT"


async def test_nothing_is_left_when_one_address_fails(runs: FakeRuns, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest):
        await start_server(backing(runs), [f"unix://{tmp_path}/s.sock", "127.0.0.1:0"])
    assert not (tmp_path / "s.sock").exists()
    with pytest.raises(errors.InvalidRequest):
        await start_server(backing(runs), [])
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), [f"unix://{tmp_path}/s.sock"], unix_group="no such group")
    assert caught.value.field == "socket_group"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server's and a client's certificate of it, and a stranger's."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for authority in ("ca", "stranger-ca"):
        openssl(
            "req", "-x509", *key, "-keyout", f"{authority}.key", "-out", f"{authority}.pem", "-subj", f"/CN={authority}"
        )
    (directory / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name, authority in (("server", "ca"), ("agent-7", "ca"), ("stranger", "stranger-ca")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signing = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "san"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return directory


def tls_files(directory: Path) -> TlsFiles:
    return TlsFiles(str(directory / "server.pem"), str(directory / "server.key"), str(directory / "ca.pem"))


def client_credentials(directory: Path, name: str | None) -> grpc.ChannelCredentials:
    authority = (directory / "ca.pem").read_bytes()
    if name is None:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(
        authority, (directory / f"{name}.key").read_bytes(), (directory / f"{name}.pem").read_bytes()
    )


async def test_tcp_asks_for_certificates_both_ways(runs: FakeRuns, certificates: Path) -> None:
    started = await start_server(backing(runs), ["tcp://127.0.0.1:0"], tls=tls_files(certificates))
    address = started.addresses[0]
    try:
        async with grpc.aio.secure_channel(address, client_credentials(certificates, "agent-7")) as channel:
            await run_pb2_grpc.RunServiceStub(channel).Execute(spec())
        assert runs.peers == [Peer(local=False, name="agent-7")]
        for name in (None, "stranger"):
            async with grpc.aio.secure_channel(address, client_credentials(certificates, name)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await run_pb2_grpc.RunServiceStub(channel).Execute(spec(), timeout=5)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await run_pb2_grpc.RunServiceStub(channel).Execute(spec(), timeout=5)
        assert len(runs.peers) == 1
    finally:
        await started.stop(0)


@pytest.mark.parametrize("lacking", ["certificate", "key", "client_ca", "all"])
async def test_tcp_without_mutual_tls_is_refused(runs: FakeRuns, certificates: Path, lacking: str) -> None:
    files = tls_files(certificates)
    parts = {name: getattr(files, name) for name in ("certificate", "key", "client_ca")}
    tls = None if lacking == "all" else TlsFiles(**{**parts, lacking: ""})
    with pytest.raises(errors.InvalidRequest) as caught:
        await start_server(backing(runs), ["127.0.0.1:0"], tls=tls)
    assert (caught.value.reason, caught.value.field) == ("TLS_REQUIRED", "listen")
    assert "tls_client_ca" in caught.value.message


async def test_tls_files_that_are_no_use_are_named(runs: FakeRuns, certificates: Path, tmp_path: Path) -> None:
    good = tls_files(certificates)
    (tmp_path / "junk").write_bytes(b"junk")
    for tls, field in (
        (TlsFiles("/nonexistent", good.key, good.client_ca), "tls_cert"),
        (TlsFiles(good.certificate, str(tmp_path / "junk"), good.client_ca), "tls_key"),
        (TlsFiles(good.certificate, str(certificates / "stranger.key"), good.client_ca), "listen"),
    ):
        with pytest.raises(errors.InvalidRequest) as caught:
            await start_server(backing(runs), ["127.0.0.1:0"], tls=tls)
        assert caught.value.field == field
