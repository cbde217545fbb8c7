"""A report as a server answers it, with every figure that is shown."""

from __future__ import annotations

from typing import Any

NOW = 1_800_000_000.0

REPORT: dict[str, Any] = {
    "status": "pass",
    "serving": True,
    "server": "gunicorn",
    "workers": 3,
    "threads": 1,
    "concurrency": 3,
    "worker_class": "sync",
    "limited_by": "cpu",
    "worker_memory_mb": 17,
    "shared_memory_mb": 81,
    "estimated_memory_mb": 132,
    "memory_available_mb": 512,
    "cpus": 1.0,
    "why": {
        "cpu": "2 × 1 CPU + 1 = 3",
        "memory": "(512 MB available × 70 % - 81 MB shared) / 17 MB a worker = 16",
    },
    "workers_alive": 3,
    "workers_wanted": 3,
    "slots": 3,
    "busy": 2,
    "utilization": 0.667,
    "queued": 0,
    "queue_mean_seconds": 0.002,
    "queue_most_seconds": 0.3,
    "served": 120433,
    "restarts": 2,
    "crashed": 0,
    "recycled": 2,
    "oom_kills": 0,
    "shed": 0,
    "abandoned": 0,
    "draining": False,
    "guard": "recycling",
    "memory_limit_mb": 512,
    "memory_used_mb": 149,
    "uptime_seconds": 200000.0,
    "running": [121.0, 0.003],
    "timeout_seconds": 120.0,
    "rates": {
        "seconds": 10.0,
        "requests_per_second": 82.3,
        "busy": 1.8,
        "mean_ms": 4.12,
        "cpu_ms": 3.2,
    },
    "history": [
        {"at": NOW - 60 * age, "seconds": 60.0, "slots": 3, "utilization": used, "requests": 10}
        for age, used in zip((5, 4, 3, 2, 1), (0.0, 0.25, 0.5, 1.0, 0.9), strict=True)
    ],
    "events": [
        {"at": NOW - 86400, "text": "recycling worker 4711 (grew 34 MB); 191 of 256 MB in use"},
        {"at": NOW - 300, "text": "memory limit changed from 512 to 768 MB: scaling from 3 to 4"},
    ],
    "advice": ["requests waited in 14 % of the last hour: add a replica, or NOW_LMS_THREADS=4"],
    "processes": [
        {
            "pid": 4711,
            "age_seconds": 4000.0,
            "served": 1234,
            "slots": 1,
            "busy": 1,
            "running_seconds": 121.0,
            "rss_mb": 96.0,
            "uss_mb": 17.3,
            "memory_age_seconds": 1.2,
        }
    ],
}
