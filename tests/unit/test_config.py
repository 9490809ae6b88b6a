"""Where configuration comes from, what wins, and how a wrong one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from supervisor.config import Config, load_config, parse_size
from supervisor.errors import InvalidRequest


@pytest.fixture(autouse=True)
def no_system_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("supervisor.config.DEFAULT_PATH", str(tmp_path / "absent.toml"))


def write(tmp_path: Path, text: str, name: str = "config.toml") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_defaults() -> None:
    config = load_config(None, {})
    assert config.listen == ("unix:///run/supervisor/supervisor.sock",)
    assert config.max_concurrent_runs >= 64
    assert config.run_uid_base == 0x30000000
    assert not config.allow_unisolated
    assert not config.remote_mounts


def test_every_key_is_described() -> None:
    assert [key for key, field in Config.model_fields.items() if not field.description] == []


def test_frozen() -> None:
    with pytest.raises(ValidationError):
        load_config(None, {}).launchers = 3  # type: ignore[misc]


def test_command_line_over_environment_over_file(tmp_path: Path) -> None:
    file = write(tmp_path, "launchers = 1\nmax_queued_runs = 1\ndrain_seconds = 1\n")
    environ = {"SUPERVISOR_MAX_QUEUED_RUNS": "2", "SUPERVISOR_DRAIN_SECONDS": "2"}
    config = load_config(file, environ, {"drain_seconds": 3})
    assert (config.launchers, config.max_queued_runs, config.drain_seconds) == (1, 2, 3)


def test_which_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    default = write(tmp_path, "launchers = 1", "default.toml")
    named = write(tmp_path, "launchers = 2", "named.toml")
    argument = write(tmp_path, "launchers = 3", "argument.toml")
    monkeypatch.setattr("supervisor.config.DEFAULT_PATH", default)
    assert load_config(None, {}).launchers == 1
    assert load_config(None, {"SUPERVISOR_CONFIG": named}).launchers == 2
    assert load_config(argument, {"SUPERVISOR_CONFIG": named}).launchers == 3


def test_environment_of_each_kind() -> None:
    config = load_config(
        None,
        {
            "SUPERVISOR_LISTEN": "unix:///a/s.sock, unix:///b/s.sock",
            "SUPERVISOR_MAX_UPLOAD_BYTES": "2G",
            "SUPERVISOR_ALLOW_UNISOLATED": "true",
            "SUPERVISOR_MOUNT_ALLOW": "",
        },
    )
    assert config.listen == ("unix:///a/s.sock", "unix:///b/s.sock")
    assert config.max_upload_bytes == 2 << 30
    assert config.allow_unisolated
    assert config.mount_allow == ()


def test_socket_follows_runtime_dir() -> None:
    assert load_config(None, {"SUPERVISOR_RUNTIME_DIR": "/tmp/x"}).listen == ("unix:///tmp/x/supervisor.sock",)


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("17", 17), ("64M", 64 << 20), ("1.5 GiB", 3 << 29), ("2kb", 2048), ("1T", 1 << 40)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1X", "1e3", "1 M M", "0x10"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "line", "key", "words"),
    [
        ("launchers = 1\nmax_uplaod_bytes = 3\n", 2, "max_uplaod_bytes", "did you mean max_upload_bytes?"),
        ("\n\n[limits]\nwall = 3\n", 3, "limits", "unknown key"),
        ("# state_dir\nstate_dir = 'var'\n", 2, "state_dir", "not an absolute path"),
        ("max_queued_runs = -1", 1, "max_queued_runs", "greater than or equal to 0"),
        ("max_message_bytes = '4 elephants'", 1, "max_message_bytes", "not a size"),
        ("inline_policies = 'some'", 1, "inline_policies", "'local', 'all' or 'none'"),
        ("listen = []", 1, "listen", "no address"),
        ("listen = ['http://x']", 1, "listen", "neither"),
        ("listen = ['host:99999']", 1, "listen", "not a port"),
        ("\nlisten = ['0.0.0.0:4000']", 2, "listen", "mutual TLS"),
        ("tls_cert = '/c.pem'", 1, "tls_cert", "set together"),
        ("run_uid_count = 10", 1, "run_uid_count", "max_concurrent_runs"),
        ("run_uid_base = 4294967290", 1, "run_uid_base", "last uid"),
        ("run_uid_base = 0", 1, "run_uid_base", "65536"),
        ("cgroup_parent = '../x'", 1, "cgroup_parent", "not the path of a cgroup"),
        ("launchers = ", 1, "config", "not TOML"),
        ("launchers = 1\nlaunchers = 2", 2, "config", "not TOML"),
    ],
)
def test_a_wrong_file_is_named_by_line_and_key(tmp_path: Path, text: str, line: int, key: str, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(InvalidRequest) as caught:
        load_config(file, {})
    assert caught.value.field == key
    assert words in caught.value.message
    assert caught.value.message.startswith(f"{file}:{line}: ")
    assert caught.value.metadata == {"file": file, "line": str(line)}


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        load_config(str(tmp_path / "none.toml"), {})
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidRequest, match="not TOML"):
        load_config(str(tmp_path / "binary.toml"), {})


def test_a_misspelt_variable_is_an_error_and_a_foreign_one_is_not() -> None:
    with pytest.raises(InvalidRequest, match="did you mean max_upload_bytes") as caught:
        load_config(None, {"SUPERVISOR_MAX_UPLAOD_BYTES": "1"})
    assert caught.value.metadata == {"source": "SUPERVISOR_MAX_UPLAOD_BYTES"}
    # Ours that are no keys, and what the process manager supervisord sets for its children.
    ours = ("ADDRESS", "REQUIRE", "CLIENT_CA", "CLIENT_CERT", "CLIENT_KEY")
    foreign = (*ours, "TEST_DIR", "ENABLED", "GROUP_NAME", "PROCESS_NAME", "SERVER_URL")
    load_config(None, {f"SUPERVISOR_{name}": "x" for name in foreign})


def test_an_unknown_override_is_an_error() -> None:
    with pytest.raises(InvalidRequest, match="did you mean listen"):
        load_config(None, {}, {"listne": ()})


def test_tcp_with_mutual_tls() -> None:
    tls = {"tls_cert": "/c", "tls_key": "/k", "tls_client_ca": "/a"}
    for address in ("0.0.0.0:4000", "[::1]:4000", "host.example:0"):
        assert load_config(None, {}, {"listen": [address], **tls}).listen == (address,)
        assert load_config(None, {}, {"listen": [f"tcp://{address}"], **tls}).listen == (address,)


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("/", True),
        ("//", True),
        ("/etc", True),
        ("/etc/ssl/certs", True),
        ("/etcetera", False),
        ("/root", True),  # it contains /root/.ssh
        ("/root/data", False),
        ("/root/.ssh/id", True),
        ("/var", True),  # it contains state_dir
        ("/var/lib/supervisor/records", True),
        ("/var/lib/supervisor2", False),
        ("/data/../etc", True),
        ("/srv/data", False),
    ],
)
def test_mounts_refused_by_default(source: str, refused: bool) -> None:
    assert bool(load_config(None, {}).mount_refusal(source)) is refused


def test_own_directories_are_refused_whatever_is_configured() -> None:
    config = load_config(
        None, {"SUPERVISOR_MOUNT_DENY": "", "SUPERVISOR_STATE_DIR": "/s", "SUPERVISOR_RUNTIME_DIR": "/r"}
    )
    assert config.mount_refusal("/s/records")
    assert config.mount_refusal("/r")
    assert config.mount_refusal("/")
    assert not config.mount_refusal("/etc")


def test_only_allowed_prefixes_are_mounted() -> None:
    config = load_config(None, {"SUPERVISOR_MOUNT_ALLOW": "/srv/data"})
    assert not config.mount_refusal("/srv/data/x")
    assert "none of mount_allow" in config.mount_refusal("/srv/database")
    assert config.mount_refusal("/srv")
