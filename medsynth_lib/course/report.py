"""The HTML report of a run: one index and one page a notebook, readable without a network."""

import base64
import html
import re
import sys
from pathlib import Path
from typing import Any

import jinja2
import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from medsynth_lib.course.results import read_json, show
from medsynth_lib.files import atomic
from medsynth_lib.settings import notebooks_folder

SHOWN_NUMBERS = 8  # of each notebook on the index; the page has them all

# The lab page without require.js, MathJax, mermaid and the widget manager, which all come from a network.
PAGE = """{% extends 'lab/index.html.j2' %}
{% block html_head_js %}{% endblock %}
{% block jupyter_widgets %}{% endblock %}
{% block html_head_js_mathjax %}{% endblock %}
{% block html_head_js_mermaidjs %}{% endblock %}
{% block html_head_css %}<style>
body.jp-Notebook { max-width: 64rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow: auto; }
.jp-InputPrompt, .jp-OutputPrompt { flex: 0 0 4rem; min-width: 4rem; font-size: 11px; }
details.solution { margin: .3rem 0 .3rem 4rem; border-left: 3px solid #6a9; }
details.solution > summary { cursor: pointer; padding: .3rem .7rem; font: 14px sans-serif; color: #286; }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", "TeX Gyre Termes Math",
  "DejaVu Math TeX Gyre", math; }
math { font-size: 1.08em; }
mtd[columnalign="right"] { text-align: right; padding-right: 0; } /* browsers ignore the attribute */
mtd[columnalign="left"] { text-align: left; padding-left: .2em; }
mi[mathvariant^="bold"] { font-weight: bold; }
math[display="block"] { margin: .8em 0; overflow-x: auto; }
p.back { font: 14px sans-serif; margin: 0 0 0 4.3rem; }
img { max-width: 100%; height: auto; }
.jp-OutputArea .highlight pre { font: 13px/1.35 monospace; }
</style>{% endblock %}
{% block body_header %}{{ super() }}<p class="back"><a href="index.html">all notebooks</a></p>{% endblock %}
{% block any_cell scoped %}
{%- if 'solution' in cell.metadata.get('tags', []) -%}
<details class="solution"><summary>Show a solution</summary>{{ super() }}</details>
{%- else -%}{{ super() }}{%- endif -%}
{% endblock %}
"""

MATH = re.compile(
    r"""(?P<literal> ^[ ]*(?P<fence>`{3,}|~{3,}).*?^[ ]*(?P=fence)[ ]*$   # a fenced block
                | (?<!`)(?P<ticks>`+)(?!`)(?:(?!\n\s*\n).)+?(?<!`)(?P=ticks)(?!`)  # a code span
                | \\[\\$] )                                                         # an escaped dollar
      | \$\$(?P<display>.+?)\$\$
      | (?P<environment>\\begin\{(?P<name>[a-z]+\*?)\}.*?\\end\{(?P=name)\})
      | \$(?=\S)(?P<inline>(?:\\.|[^$\\\n]|\n(?!\s*\n))+?)(?<=\S)\$(?!\d)""",
    re.DOTALL | re.MULTILINE | re.VERBOSE,
)
CONVERTER_SLIPS = {"<mi>&#x0007E;</mi>": "<mo>&#x0223C;</mo>", ">\\{<": ">{<", ">\\}<": ">}<"}  # of \sim and \Bigl\{


class PageExporter(HTMLExporter):
    """nbconvert's lab page with equations as MathML, embedded images and folded solutions."""

    def __init__(self) -> None:
        super().__init__(raw_template=PAGE, embed_images=True)

    @jinja2.pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """Convert Markdown; equations bypass the converter."""
        # It would read their _ and | as its own.
        equations: list[re.Match] = []

        def hide(match: re.Match) -> str:
            if match["literal"]:
                return match[0]
            equations.append(match)
            return f"equation{len(equations) - 1}hidden"

        def restore(match: re.Match) -> str:
            return re.sub(r"equation(\d+)hidden", lambda m: value(equations[int(m[1])], match[0]), match[0])

        def value(
            equation: re.Match, where: str
        ) -> str:  # inside a tag (an anchor, an alternative text) stands the TeX source
            return html.escape(equation[0]) if where.startswith("<") else mathml(equation)

        page = super().markdown2html(context, MATH.sub(hide, source))
        return re.sub(r"<[^>]*>|[^<]+", restore, page)


def mathml(equation: re.Match) -> str:
    """Convert a match of MATH to MathML; the TeX source as code where that fails."""
    tex = equation["inline"] or equation["display"] or equation["environment"]
    tex = re.sub(r"\\(label|tag)\{[^}]*\}|\\(nonumber|notag)", "", tex)
    tex = re.sub(r"\\(begin|end)\{equation\*?\}", "", tex)
    tex = re.sub(r"\\(begin|end)\{(align|aligned|split|gather|gathered)\*?\}", r"\\\1{align*}", tex)
    try:
        page = convert(tex.strip(), display="inline" if equation["inline"] else "block")
    except Exception:  # the converter raises many kinds, and an equation must not cost the report
        return f"<code>{html.escape(equation[0])}</code>"
    for wrong, right in CONVERTER_SLIPS.items():
        page = page.replace(wrong, right)
    return page


def report_again(out: str | Path) -> int:
    """Write the report of an earlier run again.

    Returns: the exit status: 0, or 2 where the folder is not of a run.
    """
    if not (Path(out) / "summary.json").is_file():
        print(f"{out} holds no summary.json; give the folder of a run.", file=sys.stderr)
        return 2
    print(f"report: {write_report(out)}")
    return 0


def write_report(out: str | Path, notebooks: Path | None = None) -> Path:
    """Write index.html and a page for each executed notebook of a run.

    Args:
        out: the run's folder, with summary.json.
        notebooks: their folder, where pictures in Markdown are found; None: the course's.

    Returns: the path of index.html.
    """
    out = Path(out)
    summary = read_json(out / "summary.json", "profile", "started", "versions", "notebooks")
    exporter = PageExporter()
    cards = [_card(out, row, exporter, notebooks or notebooks_folder()) for row in summary["notebooks"]]
    with atomic(out / "index.html") as temporary:
        temporary.write_text(_index(summary, cards), encoding="utf-8")
    return out / "index.html"


def write_page(exporter: HTMLExporter, notebook: NotebookNode, path: Path, pictures: Path) -> None:
    """Write an executed notebook as one self-contained HTML file.

    Args:
        exporter: a `PageExporter`.
        notebook: the notebook; it loses its widgets' state.
        path: the HTML file.
        pictures: folder of the pictures that its Markdown shows.
    """
    notebook.metadata.pop("widgets", None)  # without a widget manager the static output must stand in
    resources = {"metadata": {"name": path.stem, "path": str(pictures)}}
    with atomic(path) as temporary:
        temporary.write_text(exporter.from_notebook_node(notebook, resources)[0], encoding="utf-8")


def _card(out: Path, row: dict, exporter: HTMLExporter, pictures: Path) -> str:
    """One notebook on the index; its page is written on the way."""
    number, title = row["name"][:2], row["name"][3:].replace("_", " ").capitalize()
    head = f"<h2><span>{number}</span>{html.escape(title)}</h2>"
    links = ""
    if row["executed"]:
        notebook = nbformat.read(out / row["executed"], as_version=4)
        write_page(exporter, notebook, out / f"{row['name']}.html", pictures)
        head = f'<a href="{row["name"]}.html">{head}</a>'
        links = f'<a href="{row["name"]}.html">read</a> <a href="{row["executed"]}">notebook</a>'
    results = _results(out / number / "results.json")
    if results["results"]:
        links += f' <a href="{number}/results.json">results</a>'
    facts = f"{row['seconds']:.1f} s · {row['peak_mib']} MiB"
    error = f"<pre>{html.escape(row['error'] or 'stopped')}</pre>" if row["status"] != "ok" else ""
    return f"""<article><header>{head}<p><b class="{row["status"]}">{row["status"]}</b> {facts}</p></header>
{_figure(out / number / "main.png", results["caption"])}{error}{_numbers(results["results"])}
<footer>{links}</footer></article>"""


def _results(path: Path) -> dict:
    return read_json(path, "results", "caption") if path.is_file() else {"results": [], "caption": ""}


def _figure(path: Path, caption: str) -> str:
    if not path.is_file():
        return ""
    data, caption = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _numbers(rows: list[dict]) -> str:
    if not rows:
        return ""
    lines = []
    for row in rows[:SHOWN_NUMBERS]:
        name, unit, note = (html.escape(row[key]) for key in ("name", "unit", "note"))
        value, paper = html.escape(show(row["value"])), html.escape(show(row["paper"]))
        lines.append(f'<tr title="{note}"><td>{name}</td><td>{value} <small>{unit}</small></td><td>{paper}</td></tr>')
    more = f"<p class='more'>and {len(rows) - SHOWN_NUMBERS} more</p>" if len(rows) > SHOWN_NUMBERS else ""
    return f"<table><tr><th></th><th>here</th><th>paper</th></tr>{''.join(lines)}</table>{more}"


def _index(summary: dict, cards: list[str]) -> str:
    rows = summary["notebooks"]
    good = sum(row["status"] == "ok" for row in rows)
    versions = "".join(f"<li>{html.escape(k)} {html.escape(v)}</li>" for k, v in summary["versions"].items())
    seconds, peak = sum(row["seconds"] for row in rows), max((row["peak_mib"] for row in rows), default=0)
    trial = (
        ""
        if summary["profile"] != "quick"
        else "Profile quick is a trial run: it shows that all works; its numbers mean nothing."
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>medsynth: profile {html.escape(summary["profile"])}</title><style>{STYLE}</style></head><body>
<h1>3D medical image synthesis</h1>
<p class="lead">Profile <b>{html.escape(summary["profile"])}</b> · {good} of {len(rows)} notebooks ran ·
{seconds:.0f} s in all · at most {peak} MiB · started {html.escape(summary["started"][:16].replace("T", " "))} UTC</p>
<p class="lead">{trial}</p>
<ul>{versions}</ul>
<main>{"".join(cards)}</main>
<p class="lead">“Paper” is the number the paper prints for its own data; each notebook says why ours may differ.</p>
</body></html>
"""


STYLE = """
:root { color-scheme: light dark; --page: #f4f6f7; --card: #fff; --ink: #1c2527; --soft: #5d6b70; --line: #dfe5e7;
  --accent: #0b7285; --good: #2b8a3e; --bad: #c92a2a; --wait: #b8690a; }
@media (prefers-color-scheme: dark) { :root { --page: #12171a; --card: #1b2226; --ink: #e6ecee; --soft: #98a7ad;
  --line: #2d373c; --accent: #4dc0d4; --good: #69c77b; --bad: #ff8787; --wait: #f0b35a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 82rem; padding: 2.2rem 1.4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -.02em; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.lead { color: var(--soft); margin: .4rem 0; } .lead b { color: var(--ink); }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: .4rem; padding: 0; margin: .8rem 0 1.6rem; }
li { border: 1px solid var(--line); border-radius: 1rem; padding: .05rem .7rem; font-size: .8rem; color: var(--soft); }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr)); gap: 1.2rem;
  align-items: start; margin-bottom: 1.6rem; }
article { background: var(--card); border: 1px solid var(--line); border-radius: .8rem; overflow: hidden;
  padding: 1rem 1.1rem; box-shadow: 0 1px 3px #0001; }
h2 { margin: 0; font-size: 1.12rem; color: var(--ink); } h2 span { color: var(--accent); margin-right: .5rem; }
article header p { margin: .3rem 0 .7rem; color: var(--soft); font-size: .85rem; }
b.ok, b.failed, b.interrupted { border: 1px solid; border-radius: 1rem; padding: 0 .6rem; margin-right: .3rem; }
b.ok { color: var(--good); } b.failed { color: var(--bad); } b.interrupted { color: var(--wait); }
figure { margin: 0 0 .7rem; } figure img { width: 100%; border-radius: .4rem; background: #fff; display: block; }
figcaption { font-size: .82rem; color: var(--soft); margin-top: .3rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .78rem; padding: .7rem; border-radius: .4rem; background: var(--page);
  border-left: 3px solid var(--bad); }
table { width: 100%; border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th { text-align: right; color: var(--soft); font-weight: 500; }
td { border-top: 1px solid var(--line); padding: .2rem 0; }
td + td { text-align: right; white-space: nowrap; padding-left: .8rem; } td:first-child { overflow-wrap: anywhere; }
small, .more { color: var(--soft); } .more { margin: .2rem 0 0; font-size: .8rem; }
footer { margin-top: .8rem; display: flex; gap: 1rem; font-size: .88rem; }
"""
