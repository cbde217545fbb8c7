"""Sizes a production Flask server: workers and threads from CPUs and memory."""

from .app_state import get_plan
from .compat import calculate_optimal_workers, get_worker_config_from_env
from .errors import WorkerSizeConfigError
from .extension import WorkerSizing
from .health.report import CapacityReport
from .resources import HostFacts, Resources, detect_resources
from .runtime.fork import worker_forked
from .servers.launch import serve
from .sizing.plan import SizingPlan, compute_plan
from .sizing.settings import SizingSettings

__all__ = [
    "CapacityReport",
    "HostFacts",
    "Resources",
    "SizingPlan",
    "SizingSettings",
    "WorkerSizeConfigError",
    "WorkerSizing",
    "calculate_optimal_workers",
    "compute_plan",
    "detect_resources",
    "get_plan",
    "get_worker_config_from_env",
    "serve",
    "worker_forked",
]
