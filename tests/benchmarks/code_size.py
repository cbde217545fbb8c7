"""How much code the package has: ``python -m tests.benchmarks.code_size [FOLDER]``.

Lines of code are those that hold a name, a value or an operator: no blank lines, no comments, no
docstrings (of modules, classes, functions and attributes), and no line of brackets alone.
Statements are those of the grammar, docstrings left out.
"""

from __future__ import annotations

import ast
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}
_BRACKETS = {"(", ")", "[", "]", "{", "}", ",", ":"}


def measure(path: Path) -> Counter[str]:
    """Return the lines of code and the statements of a file."""
    documented: set[int] = set()
    statements = 0
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
            case ast.stmt():
                statements += 1
    with tokenize.open(path) as file:
        tokens = [
            token
            for token in tokenize.generate_tokens(file.readline)
            if token.type not in _NO_CODE and token.string not in _BRACKETS
        ]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    return Counter(lines=len(lines - documented), statements=statements)


def main() -> None:
    """Print a row for each room, and the sum."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "flask_workersize")
    rooms: dict[str, Counter[str]] = {}
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0]
        rooms[room] = rooms.get(room, Counter()) + measure(path)
    rooms["total"] = sum(rooms.values(), Counter())
    print(f"{'':<20} {'lines':>6} {'statements':>11}")
    for room, size in rooms.items():
        print(f"{room:<20} {size['lines']:>6} {size['statements']:>11}")


if __name__ == "__main__":
    main()
