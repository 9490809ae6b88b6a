"""TraceService: nothing records what runs do yet, and the service says so instead of showing an empty trace."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from supervisor.api.convert import name
from supervisor.api.methods import Method
from supervisor.api.ports import Runs
from supervisor.errors import HostLacks
from supervisor.model import Peer
from supervisor.v1 import trace_pb2 as pb


class TraceService:
    """The methods of supervisor.v1.TraceService over `runs`."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    def methods(self) -> dict[str, Method]:
        return {"GetTrace": self.get_trace, "GetTraceSummary": self.get_trace_summary}

    async def get_trace(self, request: pb.GetTraceRequest, peer: Peer) -> AsyncGenerator[pb.GetTraceResponse, None]:
        self._refuse(request.run_id)
        recorded: list[pb.GetTraceResponse] = []
        for response in recorded:
            yield response

    async def get_trace_summary(self, request: pb.GetTraceSummaryRequest, peer: Peer) -> pb.GetTraceSummaryResponse:
        self._refuse(request.run_id)
        return pb.GetTraceSummaryResponse()

    def _refuse(self, run_id: str) -> None:
        self._runs.get(name(run_id, "run_id"))
        raise HostLacks(
            f"run {run_id} has no trace: this daemon does not record what runs do",
            reason="TRACE_NOT_AVAILABLE",
            metadata={"feature": "trace", "run_id": run_id, "remedy": "the run's record has its outcome and usage"},
        )
