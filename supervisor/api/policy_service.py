"""PolicyService: what the daemon's policies say, as written and as in force."""

from __future__ import annotations

from supervisor.api.convert import MAX_POLICY_CHARS, name
from supervisor.api.methods import Method
from supervisor.api.policy_texts import PolicyTexts
from supervisor.api.ports import Policies
from supervisor.api.results import text
from supervisor.errors import InvalidRequest
from supervisor.model import Peer
from supervisor.policy import Policy
from supervisor.v1 import policy_pb2 as pb


class PolicyService:
    """The methods of supervisor.v1.PolicyService over `policies`."""

    def __init__(self, policies: Policies, texts: PolicyTexts) -> None:
        self._policies = policies
        self._texts = texts

    def methods(self) -> dict[str, Method]:
        return {
            "ListPolicies": self.list_policies,
            "GetPolicy": self.get_policy,
            "CheckPolicy": self.check_policy,
        }

    async def list_policies(self, request: pb.ListPoliciesRequest, peer: Peer) -> pb.ListPoliciesResponse:
        policies = [self._message(self._policies.get(each)) for each in self._policies.names()]
        return pb.ListPoliciesResponse(policies=policies)

    async def get_policy(self, request: pb.GetPolicyRequest, peer: Peer) -> pb.GetPolicyResponse:
        return pb.GetPolicyResponse(policy=self._message(self._policies.get(name(request.name, "name"))))

    async def check_policy(self, request: pb.CheckPolicyRequest, peer: Peer) -> pb.CheckPolicyResponse:
        if len(request.toml) > MAX_POLICY_CHARS:
            raise InvalidRequest(f"a policy has at most {MAX_POLICY_CHARS} characters", field="toml")
        own = name(request.name, "name") if request.name else ""
        return await self._texts.work(request.toml, lambda: self._check(request.toml, own))

    def _check(self, toml: str, own: str) -> pb.CheckPolicyResponse:
        problems = self._policies.check_text(toml, name=own)
        if not problems:
            return pb.CheckPolicyResponse(policy=self._message(self._policies.resolve_text(toml, name=own)))
        response = pb.CheckPolicyResponse()
        for problem in problems:
            response.problems.add(line=problem.line, key=text(problem.key), message=text(problem.message))
        return response

    def _message(self, policy: Policy) -> pb.Policy:
        return pb.Policy(
            name=policy.name,
            description=policy.description,
            extends=policy.extends,
            toml=policy.toml,
            resolved_toml=self._policies.resolved_toml(policy),
            digest=policy.digest,
        )
