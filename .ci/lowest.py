"""Print the lowest version that the project admits of each package, as constraints for pip."""

import re
import tomllib
from itertools import chain
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]
for requirement in chain(project["dependencies"], extras["test"]):
    print(re.sub(r">=([\d.]+)", r"==\1", requirement))
