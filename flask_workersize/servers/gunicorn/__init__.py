"""gunicorn under a plan.

gunicorn turns ``WEB_CONCURRENCY`` into a number when it is imported, and fails if that is empty or
"auto". Our own settings understand both, so gunicorn is imported here first, without it.
"""

import os
import re

_value = os.environ.get("WEB_CONCURRENCY")
if _value is not None and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", _value):
    del os.environ["WEB_CONCURRENCY"]
try:
    import gunicorn.config  # noqa: F401
finally:
    if _value is not None:
        os.environ["WEB_CONCURRENCY"] = _value
