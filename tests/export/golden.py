"""Write the golden files anew, after a change that is meant: ``python -m tests.export.golden``."""

from flask_workersize.export.render import TARGETS
from tests.export.test_render import GOLDEN, golden

if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for target in TARGETS:
        (GOLDEN / f"{target}.txt").write_text(golden(target))
