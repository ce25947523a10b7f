"""Write docs/rules.md from the rules themselves, docs/command_line.md from the commands, and the list of decisions.

python benchmarks/reference.py [docs]
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import typer
from rheoscope.command_line import app
from rheoscope.diagnostics import thresholds
from rheoscope.diagnostics.baseline import against_baseline
from rheoscope.diagnostics.diagnosis import RULES

ROOT = Path(__file__).parents[1]
HEAD = "Written by `python benchmarks/reference.py`; a test holds it to the code.\n"
BLANK = "…"  # where a sentence has a number or a name of the run


def rules_page() -> str:
    """Return the catalogue: of each rule what it reports, under which codes, on what evidence, what to do, and its limits."""
    parts = [
        "# The rules\n",
        HEAD,
        "In the order in which they are asked; a finding's code is the name by which it is suppressed. "
        "[What a diagnosis can say](findings.md) lists the codes by subject. "
        "Pictures are measured: `python benchmarks/pictures.py` plants a fault in a small model.\n",
    ]
    return "\n".join([*parts, *(_rule(rule) for rule in (*RULES, against_baseline))])


def _rule(rule: object) -> str:
    module = import_module(rule.__module__)  # type: ignore[attr-defined]
    name = rule.__name__  # type: ignore[attr-defined]
    functions = {n.name: n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.FunctionDef)}
    used = list(_reached(name, functions))
    calls = [c for n in used for c in ast.walk(functions[n]) if isinstance(c, ast.Call)]
    lines = [f"## {name.replace('_', ' ').capitalize()}\n", _paragraphs(inspect.getdoc(rule) or "")]
    words = {text for n in used for text in _strings(functions[n])} | _module_strings(
        module, [functions[n] for n in used]
    )
    ends = {end for n in used for end in _ends(functions[n])}
    codes = [
        c
        for c in known_codes()
        if c in words or any(c.removesuffix(e).replace("-", "_") in words for e in ends if c.endswith(e))
    ]
    if codes:
        lines.append(f"**Codes** {', '.join(f'`{code}`' for code in codes)}\n")
    for title, keyword in (("What to do", "remedy"), ("Reference", "reference")):
        found = dict.fromkeys(t for call in calls for t in _texts(_keyword(call, keyword), module) if t.strip(" ."))
        lines += [f"**{title}** {text}\n" for text in found]
    laws = [c for c in calls if ast.unparse(c.func) == "Evidence" and len(c.args) >= 4]
    rests = dict.fromkeys(
        f"{quantity}, against {law}"
        for call in laws
        for quantity in _texts(call.args[0], module)[:1]
        for law in _texts(call.args[3], module)
        if law.strip(BLANK + " ")
    )
    lines += [f"**Evidence** {text}.\n" for text in rests]
    limits = [limit for limit in _limits(module) if any(_names(functions[n], limit) for n in used)]
    if limits:
        values = ", ".join(f"`{limit}` = {getattr(thresholds, limit)!r}" for limit in limits)
        lines.append(f"**Limits** {values}\n")
    pictures = [
        f"images/rules/{code}.svg" for code in codes if (ROOT / "docs" / "images" / "rules" / f"{code}.svg").is_file()
    ]
    lines += [f"![{Path(picture).stem}: a good and a bad model, by block]({picture})\n" for picture in pictures]
    lines.append(f"<small>`diagnostics/{Path(str(module.__file__)).name}`</small>\n")
    return "\n".join(lines)


def _reached(name: str, functions: dict[str, ast.FunctionDef]) -> Iterator[str]:
    """Yield a function of a module and those of the module that it calls, each once."""
    seen, waiting = set[str](), [name]
    while waiting:
        current = waiting.pop(0)
        if current not in seen and current in functions:
            seen.add(current)
            yield current
            waiting += [n.id for n in ast.walk(functions[current]) if isinstance(n, ast.Name)]


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


@cache
def known_codes() -> tuple[str, ...]:
    """Return all codes, which a test holds to the page of findings."""
    rows = [
        row for row in (ROOT / "docs" / "findings.md").read_text(encoding="utf-8").splitlines() if row.startswith("| `")
    ]
    return tuple(dict.fromkeys(code for row in rows for code in re.findall(r"`([a-z0-9-]+)`", row.split("|")[1])))


def _ends(function: ast.FunctionDef) -> set[str]:
    """Return how codes end that are made of a word and an end, such as weight-scale."""
    made = [k.value for c in ast.walk(function) if isinstance(c, ast.Call) for k in c.keywords if k.arg == "code"]
    ends = [each.values[-1] for each in made if isinstance(each, ast.JoinedStr)]
    return {str(end.value) for end in ends if isinstance(end, ast.Constant)}


def _module_strings(module: ModuleType, functions: list[ast.FunctionDef]) -> set[str]:
    """Return the texts in tables of a module that these functions name."""
    named = {n.id for function in functions for n in ast.walk(function) if isinstance(n, ast.Name)}
    named = {name for name in named if "REMEDIES" not in name}  # by code, of other rules too
    tables = [
        n for n in ast.parse(inspect.getsource(module)).body if isinstance(n, ast.Assign | ast.AnnAssign) and n.value
    ]
    used = [
        n
        for n in tables
        if any(isinstance(t, ast.Name) and isinstance(t.ctx, ast.Store) and t.id in named for t in ast.walk(n))
    ]
    return {text for n in used if n.value is not None for text in _strings(n.value)}


def _strings(node: ast.AST) -> list[str]:
    return [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def _texts(node: ast.expr | None, module: ModuleType) -> list[str]:
    """Return the sentences that an expression may give: both of a choice, … where a value stands, constants by name."""
    if node is None:
        return []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, module), *_texts(node.orelse, module)]
    if isinstance(node, ast.JoinedStr):
        return ["".join(v.value if isinstance(v, ast.Constant) else BLANK for v in node.values)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _texts(node.left, module), _texts(node.right, module)
        return [a + b for a in left or [BLANK] for b in right or [BLANK]]
    if isinstance(node, ast.Name):
        value = getattr(module, node.id, None)
        return [value] if isinstance(value, str) else []
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        table = getattr(module, node.value.id, None)
        return [v for v in table.values() if isinstance(v, str)] if isinstance(table, dict) else []
    return []


def _limits(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if name.isupper() and getattr(thresholds, name, None) is value]


def _names(function: ast.FunctionDef, name: str) -> bool:
    return any(isinstance(n, ast.Name) and n.id == name for n in ast.walk(function))


def _paragraphs(text: str) -> str:
    return "\n".join(line.strip() for line in text.splitlines()) + "\n"


def command_line_page() -> str:
    """Return every command with its arguments and options, as its help says them."""
    parts = ["# The command line\n", HEAD]
    group = typer.main.get_command(app)
    for name in sorted(group.commands):  # type: ignore[attr-defined]
        command = group.commands[name]  # type: ignore[attr-defined]
        parts.append(f"## rheoscope {name}\n\n{_paragraphs(inspect.cleandoc(command.help or ''))}")
        parts.append("| | |\n|---|---|")
        for parameter in command.params:
            if parameter.name != "help":
                options = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
                label = options if parameter.param_type_name == "option" else f"`{str(parameter.name).upper()}`"
                said = " ".join((getattr(parameter, "help", "") or "").split()).replace("|", "\\|")
                parts.append(f"| {label} | {said} |")
        parts.append("")
    return "\n".join(parts)


def decisions_page() -> str:
    """Return the list of decisions, by the first line of each."""
    files = sorted((ROOT / "docs" / "decisions").glob("0*.md"))
    titles = [(file.name, file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")) for file in files]
    head = (
        "What was decided, why, and what it costs. Numbers do not change; a decision that is given up says by which.\n"
    )
    return "\n".join(["# Decisions\n", head, *(f"- [{title}]({name})" for name, title in titles), ""])


PAGES = {"rules.md": rules_page, "command_line.md": command_line_page, "decisions/index.md": decisions_page}


def main() -> None:
    """Write the pages."""
    folder = Path(sys.argv[1] if sys.argv[1:] else "docs")
    for name, page in PAGES.items():
        (folder / name).write_text(page(), encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")


if __name__ == "__main__":
    main()
