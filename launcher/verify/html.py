"""The matrix of a verification as one HTML file that needs no other file."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from launcher.verify.result import Verification, headline, name, summary, versions
from launcher.verify.session import CellResult

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #1b1b1b; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid #ccc; padding: .35rem .6rem; text-align: left; vertical-align: top; }
td small { color: #555; display: block; max-width: 22rem; }
.equal { background: #e3f4e3; } .refused { background: #f0f0f0; }
.different, .crashed { background: #fbdcdc; }
"""


def page(found: Verification) -> str:
    """Return the page: a row for each engine, a column for each kind of cell."""
    columns = list(dict.fromkeys((cell.ranks, cell.accumulation) for cell in found.cells))
    columns.sort()
    engines = list(dict.fromkeys(cell.engine for cell in found.cells))
    by_place = {(cell.engine, cell.ranks, cell.accumulation): cell for cell in found.cells}
    heads = "".join(f"<th>ranks {r}<br>accumulation {a}</th>" for r, a in columns)
    rows = "".join(
        f"<tr><th>{escape(engine)}</th>"
        + "".join(_cell(by_place.get((engine, *column))) for column in columns)
        + "</tr>"
        for engine in engines
    )
    # Names and reasons may hold text of the user's files: everything but numbers is escaped.
    verdict = "every cell that ran is equal" if found.ok else "not the same"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>trainctl verify</title>'
        f"<style>{_STYLE}</style><h1>{escape(headline(found))}</h1><p><b>{verdict}</b>. "
        f"{escape(summary(found))}.</p><table><tr><th></th>{heads}</tr>{rows}</table>"
        f"{''.join(_differences(found))}<p>Config {found.config.fingerprint()}; "
        f"{escape(', '.join(' '.join(each) for each in versions().items()))}.</p></html>\n"
    )


def _cell(cell: CellResult | None) -> str:
    if cell is None:
        return '<td class="refused">not asked for</td>'
    text = cell.status if cell.role == "cell" else f"{cell.role}: {cell.status}"
    if cell.deviation is not None and cell.role != "reference":
        moved = cell.deviation
        text += f"<small>loss {moved.loss:.1e}, norm {moved.norm:.1e}, "
        text += f"weights {moved.weights:.1e}</small>"
    if cell.reason:
        text += f"<small>{escape(cell.reason)}</small>"
    return f'<td class="{cell.status}">{text}</td>'


def _differences(found: Verification) -> Iterator[str]:
    for cell in found.wrong:
        where = ""
        if cell.difference is not None and cell.difference.tensor is not None:
            module = cell.difference.module or "module"
            where = f" ({escape(module)}: {escape(cell.difference.tensor)})"
        yield f"<p><b>{escape(name(cell))}</b>{where}: {escape(cell.reason)}</p>"
