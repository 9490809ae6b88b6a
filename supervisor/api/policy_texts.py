"""Policies that clients send as text: what takes long with a large one is done beside the event loop, which all runs share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from supervisor.api.ports import Policies
from supervisor.policy_file import LARGE_TEXT

T = TypeVar("T")


class PolicyTexts:
    """Work on texts, for large ones in a thread: one at a time, so that they never take more than one CPU."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies
        self._thread = ThreadPoolExecutor(1, "policy-text")
        self._turn = asyncio.Lock()

    async def work(self, text: str, do: Callable[[], T]) -> T:
        """What `do`, which is about `text`, returns or raises."""
        if len(text) <= LARGE_TEXT:
            return do()
        # Whoever had its turn goes on before the next one's begins: until then the policies remember its text.
        async with self._turn:
            return await asyncio.get_running_loop().run_in_executor(self._thread, do)

    async def prepare(self, text: str) -> None:
        """After it `resolve_text` takes no time on the event loop, whether the text is good or not."""
        if len(text) > LARGE_TEXT:
            await self.work(text, lambda: self._policies.check_text(text))
