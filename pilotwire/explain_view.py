"""``pilotwire explain`` for people: what was found, laid out for a terminal of 80 columns and more."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from pilotwire.explain_collect import Explained
from pilotwire.explain_reasons import sentence
from pilotwire.plan_tree import Plan, changed
from pilotwire.sql_text import condition
from planner.advise import SubPlan
from planner.estimates import BlockEstimates
from planner.graph import JoinKind, QueryBlock, RelationKind
from planner.snapshot import TableInfo

MOST_SUB_PLANS = 40
MOST_ADVICE = 1000
WIDE = 110


def show(found: Explained, console: Console) -> None:
    """Prints everything, the conclusion last, where the eye is when the output has scrolled past."""
    if found.graph is not None:
        _heading(console, "Query", f"fingerprint {found.fingerprint}")
        console.print(_graph(found))
    if found.sub_plans:
        _heading(console, "Joins", _models(found))
        console.print(_sub_plans(found, console.width))
    if found.dialects:
        _heading(console, "Advice", "in each dialect; this server takes the one marked")
        for name, text in found.dialects.items():
            mark = "[bold green]>[/]" if name == found.dialect else " "
            console.print(f"{mark} [bold]{name}[/]")
            console.print(Text(_beginning(text), overflow="fold"), style="cyan" if name == found.dialect else "dim")
    if found.plain is not None:
        steps = "" if found.steered is None else "steps that the other plan has not are marked"
        _heading(console, "Plans" if found.steered is not None else "Plan", steps)
        console.print(_plans(found, console.width))
    console.print()
    for note in found.notes:
        console.print(Text(note, style="dim"))
    console.print(Text(sentence(found), style="bold green" if not found.reason else "bold yellow"))


def _beginning(advice: str) -> str:
    """Advice up to about ten lines, cut between hints: large joins have up to 200 of them."""
    if len(advice) <= MOST_ADVICE:
        return advice
    end = advice.rfind(") ", 0, MOST_ADVICE) + 1 or MOST_ADVICE
    return f"{advice[:end]} ... {len(advice) - end} more characters; --json has all"


def _heading(console: Console, title: str, note: str) -> None:
    console.print()
    line = Text(title, style="bold")
    if note:
        line.append(f"  {note}", style="dim")
    console.print(line)


# ---------------------------------------------------------------------- the query


def _graph(found: Explained) -> RenderableType:
    assert found.graph is not None
    outcome = found.outcome
    resolved = outcome.resolved if outcome is not None else None
    trees = []
    for block in found.graph.blocks:
        if not block.relations:
            continue
        tables = resolved.blocks[block.index].tables if resolved is not None else (None,) * len(block.relations)
        reasons = resolved.blocks[block.index].reasons if resolved is not None else ("",) * len(block.relations)
        estimates = (outcome.estimates or {}).get(block.index) if outcome is not None else None
        trees.append(_block(block, tables, reasons, estimates, found))
    return Group(*trees)


def _block(
    block: QueryBlock,
    tables: Iterable[TableInfo | None],
    reasons: Iterable[str],
    estimates: BlockEstimates | None,
    found: Explained,
) -> Tree:
    words = []
    if block.set_operation:
        words.append(f"arm of {block.set_operation}")
    words += [name for name, there in (("grouped", block.group_by), ("distinct", block.distinct)) if there]
    words += ["limited"] if block.limit is not None else []
    title = Text(f"{'statement' if block.index == 0 else _name(block, found)}", style="bold")
    title.append(f"  {', '.join(words)}" if words else "", style="dim")
    tree = Tree(title, guide_style="dim")
    for relation, table, reason in zip(block.relations, tables, reasons, strict=True):
        label = Text(relation.alias, style="cyan")
        if table is not None:
            name = table.name if table.schema == "public" else f"{table.schema}.{table.name}"
            label.append(f" {name}" if name != relation.alias else "", style="none")
            label.append(f"  {short(table.rows)} rows", style="dim")
            filters = block.filters(relation.index)
            if filters and estimates is not None:
                label.append(f" -> {short(estimates.filtered_rows(relation.index))}", style="none")
        else:
            what = relation.kind.value if relation.kind is not RelationKind.TABLE else relation.name or ""
            label.append(f" {what}", style="none")
            label.append(f"  {reason}" if reason != what else "", style="yellow")
        leaf = tree.add(label)
        for predicate in block.filters(relation.index):
            leaf.add(Text(condition(predicate.condition, block), style="dim", overflow="ellipsis", no_wrap=True))
    for edge in block.edges:
        if edge.block is not None:
            kind = "exists in" if edge.kind is JoinKind.SEMI else "not in"
            text = f"{block.relations[edge.left.relation].alias}.{edge.left.name} {kind} a sub-query"
        else:
            left, right = block.relations[edge.left.relation], block.relations[edge.right.relation]
            text = f"{left.alias}.{edge.left.name} {edge.operator} {right.alias}.{edge.right.name}"
            text += "" if edge.kind is JoinKind.INNER else f" ({edge.kind.value} join)"
        tree.add(Text(text, style="magenta"))
    return tree


def _name(block: QueryBlock, found: Explained) -> str:
    assert found.graph is not None
    for parent in found.graph.blocks:
        for relation in parent.relations:
            if relation.block == block.index:
                return f"{relation.alias} ({relation.kind.value})"
    return f"sub-query {block.index}"


def _models(found: Explained) -> str:
    serving = [model.label for model in (found.models.cardinality, found.models.hints) if model is not None]
    return f"model {', '.join(serving)}" if serving else "no model"


# ---------------------------------------------------------------------- its joins


def _sub_plans(found: Explained, width: int) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("join of", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("PostgreSQL", justify="right")
    table.add_column("model", justify="right")
    if found.analyzed:
        table.add_column("true", justify="right")
        table.add_column("off by", justify="right")
    table.add_column("correction", justify="right")
    table.expand = True
    for sub_plan in found.sub_plans[:MOST_SUB_PLANS]:
        cells = [" ".join(sub_plan.aliases), short(sub_plan.native)]
        cells.append(short(sub_plan.rows) if sub_plan.rows is not None else f"[dim]{sub_plan.reason or '-'}[/]")
        if found.analyzed:
            cells += _truth(sub_plan, found.true_rows.get((sub_plan.block, sub_plan.mask)))
        cells.append(_correction(sub_plan))
        table.add_row(*cells)
    if len(found.sub_plans) > MOST_SUB_PLANS:
        table.add_row(f"[dim]... {len(found.sub_plans) - MOST_SUB_PLANS} more; --json has all[/]")
    return table


def _truth(sub_plan: SubPlan, true: float | None) -> list[str]:
    if true is None:
        return ["[dim]-[/]", ""]
    before = q_error(sub_plan.native, true)
    if sub_plan.rows is None:
        return [short(true), f"{before:.3g}x"]
    after = q_error(sub_plan.rows, true)
    style = "green" if after < before * 0.9 else "red" if after > before * 1.1 else "none"
    return [short(true), f"{before:.3g}x -> [{style}]{after:.3g}x[/]"]


def _correction(sub_plan: SubPlan) -> str:
    if sub_plan.rows is None:
        return ""
    factor = sub_plan.rows / sub_plan.native
    style = "bold" if not 0.5 < factor < 2 else "dim"
    return f"[{style}]x {factor:.3g}[/]"


def q_error(estimate: float, true: float) -> float:
    """How many times too large or too small, at least 1; rows below one count as one."""
    high, low = max(estimate, true, 1.0), max(min(estimate, true), 1.0)
    return high / low


# ---------------------------------------------------------------------- its plans


def _plans(found: Explained, width: int) -> RenderableType:
    assert found.plain is not None
    if found.steered is None:
        return _plan(found.plain, set())
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), expand=True, header_style="none")
    table.add_column(Text("as PostgreSQL plans it", style="dim"), ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column(Text("with the advice", style="dim"), ratio=1, no_wrap=True, overflow="ellipsis")
    before = changed(found.plain.root, found.steered.root)
    after = changed(found.steered.root, found.plain.root)
    table.add_row(_plan(found.plain, before), _plan(found.steered, after))
    table.add_row(_time(found.plain), _time(found.steered))
    return table


def _plan(plan: Plan, marked: set[int]) -> Text:
    lines = Text(no_wrap=True, overflow="ellipsis")
    for position, (depth, node) in enumerate(plan.root.walk()):
        mark = position in marked
        lines.append("* " if mark else "  ", style="bold yellow")
        lines.append(" " * depth + node.name, style="bold" if mark else "none")
        lines.append(f"  {short(node.rows)}", style="cyan")
        if node.actual is not None:
            style = "red" if q_error(node.rows, node.actual) > 10 else "green"
            lines.append(f" [{short(node.actual)}]", style=style)
        lines.append("\n")
    lines.rstrip()
    return lines


def _time(plan: Plan) -> Text:
    text = Text(f"  cost {short(plan.cost)}", style="dim")
    if plan.execution_ms is not None:
        # On a line of its own: half of 80 columns are cut off else.
        text.append(f"\n  planned {plan.planning_ms or 0:.1f} ms, ran ", style="dim")
        text.append(f"{plan.execution_ms:.1f} ms", style="bold")
    return text


def short(number: float) -> str:
    """Three digits and a unit: 12, 3.4k, 1.25M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
