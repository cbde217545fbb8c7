"""gunicorn under a plan.

gunicorn turns ``WEB_CONCURRENCY`` into a number when it is imported, and fails if that is empty or
"auto". Our own settings understand both, so gunicorn is imported here first, without it.
"""

import os

_value = os.environ.pop("WEB_CONCURRENCY", None)
try:
    import gunicorn.config  # noqa: F401
finally:
    if _value is not None:
        os.environ["WEB_CONCURRENCY"] = _value
