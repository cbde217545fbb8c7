"""Reports as a busy server would give them, for tests of the page; made from one moment."""

from __future__ import annotations

import random
from math import sin
from typing import Any

NOW = 1_790_000_000
"""The moment of the reports, in seconds since the epoch."""

PLAN: dict[str, Any] = {
    "status": "pass",
    "serving": True,
    "server": "gunicorn",
    "workers": 3,
    "threads": 1,
    "concurrency": 3,
    "worker_class": "sync",
    "limited_by": "cpu",
    "worker_memory_mb": 20,
    "shared_memory_mb": 81,
    "estimated_memory_mb": 141,
    "memory_available_mb": 512,
    "cpus": 1.0,
    "why": {
        "cpu": "2 × 1 CPU + 1 = 3",
        "memory": "(512 MB available × 70 % - 81 MB shared) / 17 MB a worker = 16",
    },
}

LIVE: dict[str, Any] = PLAN | {
    "workers_alive": 3,
    "slots": 3,
    "slots_most": 3,
    "busy": 2,
    "utilization": 0.667,
    "queued": 0,
    "queue_mean_seconds": 0.0041,
    "queue_most_seconds": 0.38,
    "shed": 0,
    "abandoned": 0,
    "served": 412_345,
    "busy_seconds": 4021.5,
    "cpu_seconds": 3000.25,
    "cpu_wait_seconds": 12.5,
    "restarts": 3,
    "crashed": 1,
    "draining": False,
    "workers_wanted": 3,
    "guard": "ok",
    "memory_limit_mb": 512,
    "memory_used_mb": 136,
    "memory_recycle_percent": 70,
    "recycled": 2,
    "oom_kills": 1,
    "uptime_seconds": 181_234.0,
    "running": [0.012, 0.003],
    "timeout_seconds": 120.0,
    "rates": {
        "seconds": 10.0,
        "requests_per_second": 82.2,
        "busy": 1.7,
        "mean_ms": 4.1,
        "cpu_ms": 3.02,
    },
    "history": [
        {
            "at": NOW - 60.0 * (59 - minute),
            "seconds": 60.0 if minute < 59 else 21.5,
            "slots": 3,
            "utilization": round(0.5 + 0.3 * sin(minute / 9) + 0.06 * sin(minute * 2.3), 3),
            "requests": 4000 + minute * 7,
            "waited": 12 * (minute % 5 + 1) if 11 < minute < 18 else 0,
            "queue_mean_seconds": 0.001,
            "queue_most_seconds": 0.38,
            "memory_used_mb": 136,
        }
        for minute in range(60)
    ],
    "events": [
        {"at": NOW - 8400.0, "text": "memory limit changed from 384 to 512 MB"},
        {"at": NOW - 3900.5, "text": "worker 4709 was OOM-killed at 212 MB (limit 512 MB)"},
        {"at": NOW - 1260.0, "text": "recycling worker 4710 (grew 34 MB); 361 of 512 MB in use"},
    ],
    "advice": ["Requests waited in 6 minutes of the last hour: add a replica, or CPUs."],
}

FULL: dict[str, Any] = LIVE | {
    "pid": 4700,
    "sources": {"workers": "calculated"},
    "warnings": [],
    "notes": [],
    "processes": [
        {
            "pid": 4711 + number,
            "age_seconds": 181_200.0 - number * 40_000,
            "ready": True,
            "silent_seconds": 0.1,
            "slots": 1,
            "busy": int(number < 2),
            "running_seconds": 0.01,
            "served": 123_456 - number * 3000,
            "busy_seconds": 1.0,
            "cpu_seconds": 1.0,
            "rss_mb": 100.0,
            "pss_mb": 50.0,
            "uss_mb": (16.8, 17.2, 21.4)[number],
            "first_mb": 12.0,
            "warm_mb": 15.0,
            "peak_mb": 18.0,
            "memory_age_seconds": 1.2,
            "memory_served": 12,
        }
        for number in range(3)
    ],
}

FAIL: dict[str, Any] = {"status": "fail", "error": "<b>THREADS</b> is not a whole number."}


def any_report(source: random.Random) -> dict[str, Any]:
    """Return a report with whatever may be left out, unknown or large."""
    report: dict[str, Any] = dict(source.choice([PLAN, LIVE, FULL, FULL]))
    report["limited_by"] = source.choice(["cpu", "memory", "explicit", "min_workers"])
    report["server"] = source.choice(["gunicorn", "waitress"])
    report["shared_memory_mb"] = source.choice([0, 81])
    if source.random() < 0.3:
        report["why"] = PLAN["why"] | {"adapts": "1 to 3 workers × 1 to 64 threads"}
    report["serving"] = source.random() < 0.9
    if "busy" not in report:
        return report
    report["slots"] = source.choice([0, 1, 3, 64, 160])
    report["busy"] = source.randint(0, report["slots"] + 1)
    running = sorted((_time(source) for _ in range(report["busy"])), reverse=True)
    report["running"] = running[: source.randint(0, report["busy"])]
    report["timeout_seconds"] = source.choice([None, 0.5, 120.0])
    report["uptime_seconds"] = _time(source)
    report["queued"] = source.choice([None, 0, 17, 12_345])
    report["queue_mean_seconds"], report["queue_most_seconds"] = source.choice(
        [(None, None), (0.0, 0.0), (_time(source), _time(source))]
    )
    report["guard"] = source.choice(["off", "ok", "recycling", "reduced", "warn", "critical"])
    report["memory_limit_mb"] = source.choice([0, 100, 512, 65_536])
    report["memory_used_mb"] = source.choice([0, 136, 600])
    report["draining"] = source.random() < 0.2
    for name in ("advice", "events", "history", "rates"):
        if source.random() < 0.2:
            report[name] = None
    if report["rates"] and source.random() < 0.5:
        known = source.random() < 0.7
        report["rates"] = {
            "seconds": source.uniform(0.5, 12),
            "requests_per_second": source.uniform(0, 2000) if known else 0.0,
            "busy": source.uniform(0, 3),
            "mean_ms": 1000 * _time(source) if known else None,
            "cpu_ms": 1000 * _time(source) if known else None,
        }
    if report["history"] and source.random() < 0.5:
        report["history"] = [
            point | {"utilization": source.random(), "waited": source.choice([0, 3])}
            for point in report["history"][: source.randint(0, 60)]
        ]
    if "processes" in report:
        report["processes"] = [
            item
            | {
                "ready": source.random() < 0.8,
                "uss_mb": source.choice([None, source.uniform(1, 300)]),
                "memory_age_seconds": source.choice([None, _time(source)]),
            }
            for item in report["processes"] * source.choice([1, 4])
        ]
        report["warnings"] = source.choice([[], ["it does <not> fit."]])
    return report


def _time(source: random.Random) -> float:
    """Return seconds on any scale, some of them where rounding is decided."""
    ties = [0.00025, 0.0125, 0.9995, 2.25, 59.5, 3570.0, 90.0, 172_800.0]
    return source.choice([*ties, 10 ** source.uniform(-6, 6)])
