"""A partition in the hands of one process: its engine, what it has sent, what it still owes an ack.

Order, always: outputs acknowledged, then the checkpoint, then the source. docs/design/checkpoints.md tells why.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import orjson

from cmis_stream.core import state
from cmis_stream.core.batch import PATH_SEPARATOR, Batch, Int64
from cmis_stream.core.engine import Engine, Step, transition_lines
from cmis_stream.core.entities import Entities, Entity
from cmis_stream.core.errors import Rejected, shown
from cmis_stream.core.incidents import OpenIncidents
from cmis_stream.core.rollups import Rollups
from cmis_stream.core.rules import Rule, parse_rule
from cmis_stream.log import envelope, rollup
from cmis_stream.log.checkpoint import CheckpointWriter, Write, recover

CHECKPOINT_RECORDS = 20
CHECKPOINT_S = 1.0
ROLLUP_MS = 250
"""Of stamps: a record in another such stretch than the last rollup's leads to the next one."""
MOST_HELD = 400
"""Records applied and not yet acked; beyond this applying waits for the checkpoint under way."""

Send = Callable[[str, int, bytes], Awaitable[Awaitable[Any]]]
"""(topic, partition, value): sends, and returns what completes when the record is durable."""
Store = Callable[[int, list[Write]], Awaitable[list[Awaitable[Any]]]]

_PATH_FIELDS = ("org", "currency", "platform", "account", "campaign", "ad_set", "ad")
TRANSITIONS, ROLLUPS, DEAD_LETTERS = "cmis.transitions.v1", "cmis.rollups.v1", "cmis.dead_letters.v1"


class Owner:
    """Applies the records of one partition of a source topic and keeps its state safe."""

    def __init__(
        self, topic: str, partition: int, engine: Engine, *, generation: str, send: Send, store: Store, log: str = "",
        dead_letters: Counter[str] | None = None,
    ) -> None:  # fmt: skip
        """log: identity of the log that offsets count in; incidents of another one have other ids. dead_letters: counts events
        that are refused, by reason."""
        self.topic, self.partition, self.engine = topic, partition, engine
        self.position = self.begun = -1
        """Offset of the newest record whose outputs are sent; of the newest that the engine has taken."""
        self.acked = -1
        """Of the newest that is in a checkpoint that is safe."""
        self.applied_at = self.saved_at = time.monotonic()
        """When the newest record was applied; when the state was cut that the newest safe checkpoint holds."""
        self.saving_s = 0.0
        """How long that checkpoint took."""
        self.generation = generation
        self._dead_letters = Counter[str]() if dead_letters is None else dead_letters
        self._being_saved = 0
        self._send, self._store = send, store
        self._writer = CheckpointWriter(generation)
        self._incidents = OpenIncidents(log)
        self._parsed_before: dict[str, dict[str, _Parsed]] = {}
        """Org -> its rules by their ids: of a new set of thousands, mostly one rule is another."""
        self._rollups = Rollups(engine.windows)
        self._stamp_ms = 0
        self._rolled_up_ms = -ROLLUP_MS  # the stamp that the last rollup was told at
        self._rolling_up = asyncio.Lock()
        self._stale_keys: list[bytes] = []
        self._leaves_stored = 0
        self._outputs: list[Awaitable[Any]] = []
        self._held: list[Callable[[], Any]] = []
        self._checkpointed_at = time.monotonic()
        self._saving: asyncio.Task[None] | None = None
        self._applying = False
        self._abandoned = False

    def load(self, records: dict[bytes, bytes]) -> None:
        """Takes over the state in a changelog. Slow for a large one: call it in a thread."""
        recovered = recover(records)
        self._stale_keys = recovered.stale_keys
        if recovered.items:
            state.restore(self.engine, recovered.items)
            self._incidents.restore(recovered.items)
            self.position = self.begun = self.acked = recovered.position

    async def apply(self, offset: int, value: bytes | None, ack: Callable[[], Any]) -> Step | None:
        """Applies the record at `offset`; `ack` is called once its effects are safe. None: it was applied before, or the
        partition is someone else's."""
        if self._abandoned:
            return None
        if offset <= self.position:
            ack()
            return None
        self._applying, self.begun = True, offset
        step = await self._apply(offset, value or b"")
        if self._abandoned:
            return None
        # Only now: state, position and outputs belong together, and sending outputs may wait. (An exception above leaves
        # the flag set: a state that is half of a record is never saved, the process ends.)
        self.position = offset
        self._held.append(ack)
        self._applying = False
        self.applied_at = time.monotonic()
        if self._stamp_ms // ROLLUP_MS != self._rolled_up_ms // ROLLUP_MS:
            await self._roll_up()
        if len(self._held) >= CHECKPOINT_RECORDS or self.applied_at - self._checkpointed_at >= CHECKPOINT_S:
            await self.checkpoint()
        if len(self._held) >= MOST_HELD:
            await self._saved()
        return step

    async def _apply(self, offset: int, value: bytes) -> Step:
        try:
            record = envelope.decode(value)
        except Rejected as error:
            await self._dead_letter(offset, [{**error.as_dict(), "record": shown(value, 400)}])
            return Step()
        self._stamp_ms = record.stamp_ms
        batch: Batch | None = None
        match record:
            case envelope.Events(stamp_ms, events):
                batch, step = events, self.engine.apply(events, stamp_ms)
                if step.refused:
                    await self._dead_letter(offset, [_refusal(events, event, code) for event, code in step.refused])
            case envelope.Tick(stamp_ms, watermark_ms):
                step = self.engine.tick(stamp_ms, watermark_ms)
            case envelope.RuleSet(_, org, version, rules, evaluate):
                kept, parsed, refused = _parsed(rules, evaluate, self._parsed_before.get(org, {}))
                self._parsed_before[org] = {rule.id: (raw, evaluate, rule) for raw, rule in zip(kept, parsed, strict=True)}
                step = self.engine.adopt(org, version, parsed, kept, evaluate=evaluate)
                if refused:
                    await self._dead_letter(offset, [{"org": org, **reason} for reason in refused])
        if step.changes:
            lines = transition_lines(self.engine, step)
            if batch is not None and step.leaves is not None:
                _add_evidence(self.engine.entities, lines, batch, step.leaves)
            await self._publish(offset, record.stamp_ms, lines)
        return step

    async def _publish(self, offset: int, stamp_ms: int, lines: list[dict[str, Any]]) -> None:
        """One record with all transitions of a source record; each is identified by the position and its index."""
        for index, line in enumerate(lines):
            line["id"] = f"{self.topic}/{self.partition}/{offset}/{index}"
        self._incidents.name(lines)
        body = {"source": [self.topic, self.partition, offset], "stamp": stamp_ms, "transitions": lines}
        await self._tell(TRANSITIONS, orjson.dumps(body))

    async def _roll_up(self) -> None:
        """Tells what panes have changed since the last rollup, at the position as it is now. One at a time: consumers pass
        positions, so rollups are sent in their order, and no position is told twice."""
        async with self._rolling_up:
            rolled_up = None if self._applying or self._abandoned else self._rollups.take()
            if rolled_up is not None:
                self._rolled_up_ms = self._stamp_ms
                source = (self.topic, self.partition, self.position)
                body = rollup.encode(source, self._stamp_ms, rolled_up)
                await self._tell(ROLLUPS, body)

    async def _dead_letter(self, offset: int, reasons: list[dict[str, Any]]) -> None:
        body = {"source": [self.topic, self.partition, offset], "reasons": reasons}
        self._dead_letters.update(reason["code"] for reason in reasons)
        await self._tell(DEAD_LETTERS, orjson.dumps(body))

    async def _tell(self, topic: str, value: bytes) -> None:
        if not self._abandoned:
            self._outputs.append(await self._send(topic, self.partition, value))

    @property
    def unacked(self) -> int:
        """Records applied and not yet acked."""
        return len(self._held) + self._being_saved

    @property
    def idle_s(self) -> float:
        return time.monotonic() - self.applied_at

    async def tell_if_quiet(self) -> None:
        """The last records before a pause are told within half a second, not with the next tick."""
        if self._rollups.pending and not self._applying and self.idle_s * 1000 >= ROLLUP_MS:
            await self._roll_up()

    async def save_if_due(self) -> None:
        """For a partition that has grown quiet: its last records are acked within a second, too."""
        if self._held and not self._applying and time.monotonic() - self._checkpointed_at >= CHECKPOINT_S:
            await self.checkpoint()
        elif self._saving is not None and self._saving.done():
            await self._saved()

    async def checkpoint(self, *, wait: bool = False) -> None:
        """Begins a checkpoint of the state as it is now, unless one is under way. wait: until all that is applied is safe."""
        if wait:
            await self._saved()
        if self._may_save():
            await self._roll_up()
        # A record that was applied while the rollup was being sent has to be told, too, before there is a state with it.
        if self._may_save() and not self._rollups.pending:
            await self._saved()  # at once: raises what the last one failed with
            changed = state.changed(self.engine, self._leaves_stored) | self._incidents.changed()
            self._leaves_stored = self.engine.entities.leaves
            keys = state.keys(self.engine) | self._incidents.keys()
            writes = self._writer.write(self.position, changed, keys, self._export)
            outputs, self._outputs = self._outputs, []
            held, self._held = self._held, []
            self._checkpointed_at, self._being_saved = time.monotonic(), len(held)
            self._saving = asyncio.ensure_future(self._save(self.position, outputs, writes, held))
        if wait:
            await self._saved()

    async def _saved(self) -> None:
        """Until the checkpoint under way is safe; raises what it failed with. Not cancelled with who waits: it is not theirs."""
        if self._saving is not None:
            if not self._saving.done():
                await asyncio.wait([self._saving])
            if not self._abandoned:
                self._saving.result()

    def _may_save(self) -> bool:
        return not self._abandoned and bool(self._held) and not self._applying and (self._saving is None or self._saving.done())

    def _export(self, key: str) -> Any:
        chunk = self._incidents.export(key)
        return state.export(self.engine, key) if chunk is None else chunk

    async def _save(
        self, position: int, outputs: list[Awaitable[Any]], writes: list[Write], held: list[Callable[[], Any]]
    ) -> None:
        cut_at = self._checkpointed_at
        await asyncio.gather(*outputs)
        await asyncio.gather(*await self._store(self.partition, writes))
        for ack in held:
            ack()
        self.acked, self.saved_at, self._being_saved = position, cut_at, 0
        self.saving_s = time.monotonic() - cut_at
        if self._stale_keys:
            # The state is safe in this generation's keys; whatever older ones hold is not needed any more.
            stale, self._stale_keys = self._stale_keys, []
            await asyncio.gather(*await self._store(self.partition, [(key, None) for key in stale]))

    def abandon(self) -> None:
        """The partition belongs to someone else now: nothing more is written, sent or acked. Whoever waits goes on.

        What the producer has been given already is sent all the same; it is true, and consumers have passed its position or
        will. No last checkpoint here: it would hold the whole group up to spare the next owner a second's records.
        """
        self._abandoned = True
        if self._saving is not None:
            self._saving.cancel()
            self._saving.add_done_callback(_look_at)
        self._held, self._outputs = [], []


def _look_at(saving: asyncio.Task[None]) -> None:
    """Takes note of a failure, or asyncio complains that nobody did."""
    if not saving.cancelled():
        saving.exception()


_Parsed = tuple[Any, str, Rule]
"""A rule as given, what it means that says nothing of how it is evaluated, and as parsed."""


def _parsed(rules: list[Any], evaluate: str, before: Mapping[str, _Parsed]) -> tuple[list[Any], list[Rule], list[dict[str, Any]]]:
    """Rules as given and parsed, and what was refused: a rule that an older version accepted must not stop the partition.

    before: by id, what need not be parsed again.
    """
    kept, parsed, refused = [], [], []
    for raw in rules:
        try:
            identity = raw.get("id") if isinstance(raw, dict) else None
            known = before.get(identity) if isinstance(identity, str) else None
            same = known is not None and known[:2] == (raw, evaluate)
            parsed.append(known[2] if known is not None and same else parse_rule(raw, evaluate=evaluate))
            kept.append(raw)
        except Rejected as error:
            refused.append({**error.as_dict(), "rule": shown(raw, 400)})
    return kept, parsed, refused


def _refusal(batch: Batch, event: int, code: str) -> dict[str, Any]:
    row = int((batch.event == event).argmax())
    path = batch.paths[int(batch.leaf[row])].split(PATH_SEPARATOR)
    return {"code": code, "id": batch.ids[event], "org": path[0], "ts": int(batch.ts_ms[row]), "entity": path[2:7]}


def _add_evidence(entities: Entities, lines: list[dict[str, Any]], batch: Batch, leaves: Int64) -> None:
    """The ids of up to three of the record's last events about the entity of each transition, newest first. leaves: of the
    batch's rows."""
    sorted_by_level: dict[str, tuple[Any, Any]] = {}
    for line in lines:
        level = line["level"]
        if level not in sorted_by_level:
            rows = entities.rows[entities.levels.index(level)][leaves]
            order = np.argsort(rows, kind="stable")
            sorted_by_level[level] = rows[order], batch.event[order]
        rows, events = sorted_by_level[level]
        row = entities.find(Entity(level, *(line[name] for name in _PATH_FIELDS)))
        start, stop = np.searchsorted(rows, [row, row + 1]) if row is not None else (0, 0)
        line["events"] = [batch.ids[event] for event in dict.fromkeys(events[start:stop][::-1].tolist())][:3]
