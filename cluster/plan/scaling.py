"""Simulated autoscaling: Serve's policy, fed with the reports that replicas would send."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ray.serve.config import AutoscalingConfig, AutoscalingContext
from simpy import Environment

from cluster.plan.pool import Member, Pool
from cluster.plan.stages import Process
from serve.config.autoscaling import Autoscaling

# Serve's controller looks ten times a second, but reports come only every metrics_interval_s.
LOOK_INTERVAL_S = 1.0
# Replicas record their state this often per look-back (RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR).
NOTES_PER_LOOK_BACK = 5


class Sample(NamedTuple):
    """The same as Serve's TimeStampedValue."""

    timestamp: float
    value: float


Reports = dict[str, dict[str, list[Sample]]]  # by the report's name and by replica


@dataclass(eq=False, slots=True)
class Upscaling:
    """Serve's treatment of a policy's result: bounds, and a delay before adding replicas."""

    config: AutoscalingConfig
    wanted_since: float | None = None

    def target(self, wanted: int, target: int, running: int, now: float) -> int:
        wanted = min(max(wanted, self.config.min_replicas), self.config.max_replicas)
        if wanted <= target:
            self.wanted_since = None
            return wanted
        if self.wanted_since is None:
            self.wanted_since = now
        if running and now - self.wanted_since < self.config.upscale_delay_s:
            return target
        self.wanted_since = None
        return wanted


class Scaler:
    """Scales one stage. It runs as two processes: `report` and `scale`."""

    def __init__(self, env: Environment, name: str, pool: Pool[Any], autoscaling: Autoscaling) -> None:
        self._env = env
        self._name = name
        self._pool = pool
        self._cold_start_s = autoscaling.cold_start_s
        self._config = AutoscalingConfig(**autoscaling.autoscaling_config())
        self._policy: Callable[[AutoscalingContext], tuple[int, Mapping[str, Any]]]
        self._policy = self._config.policy.get_policy()(**self._config.policy.policy_kwargs)
        self._notes: dict[Member[Any], list[tuple[float, dict[str, float]]]] = {}
        self._reports: Reports = {}

    def report(self) -> Process:
        """Records the replicas' state and reports it every metrics_interval_s."""
        interval_s, look_back_s = self._config.metrics_interval_s, self._config.look_back_period_s
        told_at = self._env.now
        while True:
            now = self._env.now
            self._notes = {
                member: [
                    (noted, stats)
                    for noted, stats in [*self._notes.get(member, []), (now, member.tally.stats())]
                    if noted >= now - look_back_s
                ]
                for member in self._pool.running
            }
            if now - told_at >= interval_s:
                told_at = now
                self._reports = self._told()
            yield self._env.timeout(min(look_back_s / NOTES_PER_LOOK_BACK, interval_s))

    def _told(self) -> Reports:
        reports: Reports = {}
        for index, notes in enumerate(self._notes.values()):
            for noted, stats in notes:
                for name, value in stats.items():
                    reports.setdefault(name, {}).setdefault(str(index), []).append(Sample(noted, value))
        return reports

    def scale(self) -> Process:
        """Resizes the pool to the policy's number of replicas."""
        state: Mapping[str, Any] = {}
        upscaling = Upscaling(self._config)
        while True:
            yield self._env.timeout(LOOK_INTERVAL_S)
            target, running = self._pool.num_replicas, len(self._pool.running)
            total = self._pool.num_ongoing + self._pool.num_waiting
            if running == 0 and total:
                wanted = max(1, target)  # Serve asks no policy for the first replica
            else:
                wanted, state = self._policy(self._context(state))
            if (new := upscaling.target(wanted, target, running, self._env.now)) != target:
                self._pool.resize(new, self._cold_start_s)

    def _context(self, state: Mapping[str, Any]) -> AutoscalingContext:
        waiting = self._pool.num_waiting
        return AutoscalingContext(
            deployment_id=None,
            deployment_name=self._name,
            app_name="",
            current_num_replicas=len(self._pool.running),
            target_num_replicas=self._pool.num_replicas,
            running_replicas=[],
            total_num_requests=self._pool.num_ongoing + waiting,
            total_queued_requests=waiting,
            aggregated_metrics={},
            raw_metrics=self._reports,
            capacity_adjusted_min_replicas=self._config.min_replicas,
            capacity_adjusted_max_replicas=self._config.max_replicas,
            policy_state=dict(state),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self._env.now,
            config=self._config,
        )
