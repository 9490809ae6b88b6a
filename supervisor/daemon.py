"""The daemon: what is started in which order, signals, and the way back.

Order matters once: whatever forks (host probes, launchers) comes before gRPC and its threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import structlog

from supervisor import logs
from supervisor.config import Config, load_config
from supervisor.errors import HostLacks, LaunchFailed, SupervisorError
from supervisor.evidence.records import RunRecords
from supervisor.evidence.traces import TraceStore
from supervisor.instances import Instance
from supervisor.shipped import launcher_path, shipped_policy_dir

if TYPE_CHECKING:
    from supervisor.api.server import Server
    from supervisor.backends.native import NativeBackend
    from supervisor.linux.cgroup import Hierarchies
    from supervisor.linux.uids import UidLease
    from supervisor.model import HostFeatures
    from supervisor.policy_file import PolicySet
    from supervisor.runs import Runs

log = structlog.get_logger(__name__)

_UPKEEP_SECONDS = 5.0
_PRUNE_SECONDS = 3600.0
_PRUNE_TRACES_SECONDS = 60.0


@dataclass(slots=True)
class Parts:
    """What a daemon consists of once everything that forks has been done."""

    config: Config
    instance: Instance
    records: RunRecords
    traces: TraceStore
    host: HostFeatures
    hierarchies: Hierarchies
    backend: NativeBackend
    policies: PolicySet
    uids: UidLease


def prepare(config: Config, instance_name: str) -> Parts:
    """Everything before the event loop. Raises SupervisorError; nothing stays behind then."""
    _require_root()
    from supervisor.backends.native import NativeBackend
    from supervisor.backends.native_sandbox import NativeSettings
    from supervisor.launcher.process import Launcher
    from supervisor.linux.cgroup import Hierarchies
    from supervisor.linux.delegation import delegated_parent
    from supervisor.linux.host import cgroup_layout, probe_host
    from supervisor.linux.uids import lease_uids
    from supervisor.policy_file import PolicySet
    from supervisor.probes.load import open_probes
    from supervisor.probes.recorder import Recorder

    _set_process_flags()
    policies = PolicySet(shipped_policy_dir(), *(path for path in config.policy_dirs if os.path.isdir(path)))
    with contextlib.ExitStack() as stack:
        state_dir = Path(config.state_dir)
        instance = Instance(state_dir, instance_name)
        stack.callback(instance.close)
        records = RunRecords(state_dir / "runs.db")
        stack.callback(records.close)
        layout = cgroup_layout()
        parent = config.cgroup_parent or delegated_parent(layout)
        instance.clean_up_after_the_dead(records, layout, parent)
        host = probe_host(config.state_dir)
        hierarchies = Hierarchies.create(layout, instance.name, parent)
        stack.callback(hierarchies.remove)
        path = Path(config.launcher) if config.launcher else launcher_path()
        if not path.exists():
            raise LaunchFailed(f"{path} is not there: build it with `make setup`", metadata={"stage": "spawn"})
        launchers = [Launcher(path) for _ in range(config.launchers or os.cpu_count() or 1)]
        for launcher in launchers:
            launcher.spawn()
            stack.callback(launcher.close)
        lease = lease_uids(config.run_uid_base, config.run_uid_count, config.max_concurrent_runs)
        stack.callback(lease.close)
        settings = NativeSettings(
            mount_refusal=config.mount_refusal,
            uid_base=lease.base,
            uid_count=lease.count,
            max_collect_bytes=config.max_collect_bytes,
            max_collect_files=config.max_collect_files,
            instance=instance.name,
        )
        probes, features = open_probes(hierarchies.group, config.max_concurrent_runs, hierarchies.unified)
        host = replace(host, features={**host.features, **{feature.name: feature for feature in features}})
        traces = TraceStore(state_dir / "traces")
        traces.remove_partial()
        recorder = Recorder(probes, traces, config.max_trace_bytes) if probes is not None else None
        backend = NativeBackend(settings, host, hierarchies, launchers, recorder)
        stack.pop_all()
    return Parts(config, instance, records, traces, host, hierarchies, backend, policies, lease)


def _require_root() -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        raise HostLacks(
            "the native backend needs root on Linux: namespaces, mounts and control groups are made by it",
            reason="NOT_ROOT",
            metadata={"feature": "root", "remedy": "start the daemon as root (sudo supervisor serve)"},
        )


def _set_process_flags() -> None:
    """The daemon's own memory and descriptors are nobody's to look at; it may hold many of the latter."""
    import prctl

    prctl.set_dumpable(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(slots=True)
class Service:
    """A daemon on its event loop: from listening to gone."""

    parts: Parts
    runs: Runs
    server: Server
    _upkeep: asyncio.Task[None]

    @classmethod
    async def start(cls, parts: Parts, listen: Sequence[str]) -> Service:
        """Opens the backend and listens. Raises SupervisorError."""
        from supervisor.api.auth import TlsFiles
        from supervisor.api.host_service import HostInfo
        from supervisor.api.server import Backing, start_server
        from supervisor.runs import Runs

        config = parts.config
        await parts.backend.open()
        runs = Runs(
            backends={"native": parts.backend},
            policies=parts.policies,
            records=parts.records,
            traces=parts.traces,
            instance=parts.instance.name,
            max_concurrent=config.max_concurrent_runs,
            max_queued=config.max_queued_runs,
            allow_unisolated=config.allow_unisolated,
            inline_policies=config.inline_policies,
            remote_mounts=config.remote_mounts,
            followers=parts.backend.recorder.followers if parts.backend.recorder is not None else None,
        )
        info = HostInfo(
            version=metadata.version("host-supervisor"),
            max_concurrent_runs=config.max_concurrent_runs,
            max_queued_runs=config.max_queued_runs,
            max_message_bytes=config.max_message_bytes,
        )
        tls = TlsFiles(config.tls_cert, config.tls_key, config.tls_client_ca) if config.tls_cert else None
        server = await start_server(
            Backing(runs, parts.policies, parts.host, info, config.max_upload_bytes),
            listen,
            tls=tls,
            max_message_bytes=config.max_message_bytes,
            unix_group=config.socket_group or None,
            runtime_dir=config.runtime_dir,
        )
        return cls(parts, runs, server, asyncio.create_task(_upkeep(parts, runs)))

    async def stop(self, drain_seconds: float | None = None) -> bool:
        """Drains, ends what is left, closes everything; False when a run hangs, and with it what it uses stays open."""
        await self.server.drain()
        hanging = await self.runs.drain(self.parts.config.drain_seconds if drain_seconds is None else drain_seconds)
        await self.server.stop(2.0)
        self._upkeep.cancel()
        if left := await asyncio.to_thread(self.runs.write_pending):
            log.error("records_lost", count=left)
        if hanging:
            return False
        await self.parts.backend.close()
        close(self.parts)
        return True


def close(parts: Parts) -> None:
    """The counterpart of `prepare`, for after the backend is closed."""
    parts.hierarchies.remove()
    parts.records.close()
    parts.uids.close()
    parts.instance.close()


async def _upkeep(parts: Parts, runs: Runs) -> None:
    """What the records need from time to time, off the runs' path."""
    prune_at = prune_traces_at = 0.0
    while True:
        await asyncio.sleep(_UPKEEP_SECONDS)
        try:
            await asyncio.to_thread(runs.write_pending)
            # Else SQLite does it inside a run.
            await asyncio.to_thread(parts.records.checkpoint)
            if parts.config.record_days and time.monotonic() > prune_at:
                prune_at = time.monotonic() + _PRUNE_SECONDS
                await asyncio.to_thread(parts.records.prune, time.time() - parts.config.record_days * 86400)
            if time.monotonic() > prune_traces_at:
                prune_traces_at = time.monotonic() + _PRUNE_TRACES_SECONDS
                oldest = time.time() - parts.config.trace_days * 86400 if parts.config.trace_days else 0
                await asyncio.to_thread(parts.traces.prune, oldest, parts.config.max_traces_bytes)
        except (SupervisorError, OSError) as error:
            log.warning("upkeep_failed", error=str(error))


def serve(config_path: str | None = None, listen: Sequence[str] = ()) -> int:
    """Runs a daemon until SIGTERM or SIGINT; the exit status. A second signal ends running runs at once."""
    try:
        config = load_config(config_path, os.environ)
        logs.configure(config.log_level, config.log_format)
        parts = prepare(config, f"d-{hashlib.sha256(os.path.realpath(config.state_dir).encode()).hexdigest()[:12]}")
    except SupervisorError as error:
        sys.stderr.write(f"supervisor: {error}\n")
        return 125
    try:
        return asyncio.run(_serve(parts, listen or config.listen))
    except SupervisorError as error:
        sys.stderr.write(f"supervisor: {error}\n")
        for launcher in parts.backend.launchers:
            launcher.close()
        close(parts)
        return 125


async def _serve(parts: Parts, listen: Sequence[str]) -> int:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    service = await Service.start(parts, listen)

    def on_signal() -> None:
        if stopping.is_set():
            service.runs.stop_all("the daemon was told twice to stop")
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    notify_systemd("READY=1")
    log.info("ready", addresses=service.server.addresses, cgroup=parts.host.cgroup, kernel=parts.host.kernel)
    await stopping.wait()
    notify_systemd("STOPPING=1")
    log.info("stopping", running=service.runs.running)
    if not await service.stop():
        # asyncio.run would wait for the run's task and thread for ever; the next start removes what is left of it.
        sys.stderr.flush()
        os._exit(1)
    return 0


def notify_systemd(state: str) -> None:
    """sd_notify(3): tells the service manager, where one waits for it."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify, contextlib.suppress(OSError):
        notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)


class EmbeddedDaemon:
    """A daemon in this process, on a thread and a private socket, for as long as the context lasts.

    Raises HostLacks where the host cannot serve (no root, no Linux).
    """

    def __init__(self) -> None:
        self._ready: threading.Event = threading.Event()
        self._error: BaseException | None = None
        self._address = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> str:
        config = load_config(None, os.environ)
        logs.configure("error" if config.log_level == "info" else config.log_level, config.log_format)
        parts = prepare(config, f"e-{os.getpid()}-{os.urandom(4).hex()}")
        self._thread = threading.Thread(target=self._run, args=(parts,), name="embedded-daemon")
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        return self._address

    def _run(self, parts: Parts) -> None:
        try:
            asyncio.run(self._main(parts))
        except BaseException as error:
            self._error = error
            for launcher in parts.backend.launchers:
                launcher.close()
            close(parts)
        finally:
            self._ready.set()

    async def _main(self, parts: Parts) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        with tempfile.TemporaryDirectory(prefix="supervisor-embedded-") as directory:
            address = f"unix://{directory}/s.sock"
            service = await Service.start(parts, [address])
            self._address = address
            self._ready.set()
            await self._stop.wait()
            # Whoever embeds has what it waited for; a run still alive is to be ended, not waited for.
            await service.stop(drain_seconds=0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None and self._stop is not None and self._thread is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
