"""Commands: carries out what people ask to be done to facts (acknowledge, approve, correct), each command once.

Keyed by org, acked once their results are in the store, with the facts and effects that follow from them. Like `project`, the
store knows how far it is. What is no command is a dead letter; a command that cannot be is a result like any other.
"""

from __future__ import annotations

from typing import Any

import faust

from cmis_stream.core.errors import Rejected
from cmis_stream.feeds.decode import Refusal
from cmis_stream.live.commands import COMMANDS, decode
from cmis_stream.runtime import Runtime


def attach(app: faust.App, runtime: Runtime) -> None:
    runtime.on_assigned(runtime.commands.begin)

    @app.agent(runtime.raw_topic(COMMANDS), concurrency=1, name="commands")
    async def commands(stream: Any) -> None:
        async for event in stream.noack().events():
            with runtime.guard("commands"):
                message, value = event.message, event.value or b""
                try:
                    decode(value)
                except Rejected as error:
                    position = [COMMANDS, message.partition, message.offset]
                    await runtime.dead_letter_at(position, [Refusal(0, None, None, error, value[:4096])])
                await runtime.commands.put(message.partition, message.offset, value, event.ack)
