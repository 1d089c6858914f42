"""Health over a runtime: which of its parts are looked at, by role."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cmis_stream.health.health import Health
from cmis_stream.health.ports import Parts
from cmis_stream.health.watch import Limits, SickError
from cmis_stream.live.jobs import JOBS
from cmis_stream.runtime import CHANGES, METRICS, RAW, ROLLUPS, TRANSITIONS

if TYPE_CHECKING:
    from cmis_stream.runtime import Runtime

STOP_WITHIN_S = 60.0
"""Of a sick process: what is under way may be given as long as that to become safe, then it is ended."""


def health_of(runtime: Runtime) -> Health:
    """`Runtime.failed` is set when the process has to end. The gateway's hub, if there is one, is told later (`Health.parts`)."""
    settings, member, role = runtime.settings, runtime.member, runtime.settings.role

    def on_sick(sick: SickError) -> None:
        if not runtime.failed.done():
            runtime.failed.set_exception(sick)

    def failed() -> str | None:
        return str(runtime.failed.exception()) if runtime.failed.done() else None

    def crash() -> BaseException | None:
        return member.app.crash_reason if member is not None and member.app._crashed.is_set() else None

    parts = Parts(
        role=role.value,
        clock=runtime.clock,
        log=runtime.log,
        topics=(METRICS, RAW, CHANGES, TRANSITIONS, ROLLUPS, JOBS) if role.has_agents or role.has_api else (METRICS,),
        group_lag=role.has_api and not role.has_agents,
        partitions=lambda: list(runtime.owners.values()),
        flowing=member.app.flow_control.is_active if member is not None and role.has_agents else (lambda: True),
        crash=crash,
        failed=failed,
        unready=runtime.unready,
        waiting_events=(lambda: runtime.packer.waiting) if member is not None else None,
        log_full=runtime.log_full,
        dead_letters=lambda: runtime.dead_letters,
        projected=(lambda: runtime.projection.reached) if role.has_agents else None,
        history=(lambda: runtime.history.reached) if role.has_agents else None,
        history_lost=(lambda: runtime.history.lost) if role.has_agents else (lambda: 0),
        backplane=runtime.backplane if role.has_agents or role.has_gateway else None,
        store=runtime.stores.database,
    )
    log_file = settings.data_dir / "cmis.log" if role.has_agents and role.has_api else None
    limits = Limits(memory_bytes=settings.memory_limit, stop_within_s=STOP_WITHIN_S)
    return Health(parts, on_sick, limits=limits, log_file=log_file)
