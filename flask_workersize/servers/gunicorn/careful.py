"""What gunicorn's workers do before their first request: leave connections to others."""

from __future__ import annotations

import time
from typing import Any

from gunicorn.workers.base import Worker

from ...monitor.first_request import FirstRequest
from ...runtime.polling import wait_readable

LOOK_AGAIN_SECONDS = 0.01
"""How long a worker leaves a connection to others before it checks again."""


class CarefulWorker(Worker):
    """A worker of gunicorn's whose first request may have to wait for those of others."""

    first: FirstRequest | None = None
    nr_conns = 0
    """Connections that are open; gunicorn's threaded worker counts them."""

    def notify(self) -> None:
        """Note, in each turn of the main loop, whether the first request is over."""
        if self.first is not None and self.first.is_over(self.nr_conns > 0):
            self.first = None
        super().notify()

    def accept(self, listener: Any) -> Any:
        """Accept a connection, or leave it to other workers for a moment."""
        first = self.first if self.alive else None
        if first and wait_readable([listener], 0) and not first.begins():
            time.sleep(LOOK_AGAIN_SECONDS)
            return None
        return super().accept(listener)  # type: ignore[misc]
