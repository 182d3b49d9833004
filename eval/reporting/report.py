"""The report of a run: one HTML file that opens offline, and `summary.json` beside it for scripts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from common.runs import RunFolder, atomic_write, write_json
from eval.manifest import Methods
from eval.reporting.card import write_card
from eval.reporting.gallery import gallery
from eval.reporting.report_extra import drift, further_metrics, paper_numbers
from eval.reporting.sections import avatar, demo, funnel, number, provenance, results, strips, sync_facts, training
from eval.reporting.summary import read_optional, scored_methods, summarize, swapped_key

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: RunFolder, summary: Mapping[str, Any]) -> Path:
    """Write `report/index.html`, `summary.json` and, of a judged run, the result card; returns the path of the page.

    `summary` overrides keys of summary.json (its form is in `eval.reporting.summary`), e.g. `seconds` per stage as the
    caller timed them. Parts of the run that are not there are shown as "not run".
    """
    complete = summarize(run, summary)
    methods = scored_methods(read_optional(run.report / "scores.json") or {})
    if (run.report / "metrics.parquet").exists():
        write_card(run)
    page = render(
        run=Path(run.root).name,
        summary=complete,
        headline=headline(complete, methods),
        methods=methods,
        sync_facts=sync_facts(complete, methods),
        demo=demo(run),
        avatar=avatar(run),
        drift=drift(run),
        funnel=funnel(run, complete),
        strips=strips(run),
        training=training(run),
        results=results(run),
        further=further_metrics(run),
        reported=paper_numbers(run),
        gallery=gallery(run),
        provenance=provenance(run),
        card=read_optional(run.report / "card.json"),
    )
    write_json(run.report / "summary.json", complete)
    path = run.report / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8", "backslashreplace")
    return path


def headline(summary: Mapping[str, Any], methods: Methods) -> tuple[str, str]:
    """The result in one sentence and in one line of evidence."""
    sync = summary["sync_c"]
    own, swapped, p = (sync.get(key) for key in (methods.judged, methods.swapped, swapped_key(methods)))
    if own is not None and not methods.swapped:
        missing = "no control driven by another clip's audio was judged, so what the voice does to the mouth is open"
        return f"{words(methods.judged)}: Sync-C {own:.2f}", missing.capitalize()
    if own is None or swapped is None or p is None:
        return "Not yet judged", "The lips have not been compared with the voice in this run"
    numbers = f"Sync-C {own:.2f} on held-out voices, {swapped:.2f} when another clip's audio drives"
    evidence = f"{numbers} (paired Wilcoxon test, p\u00a0=\u00a0{p_text(p)})"
    if p < 0.01 and own > swapped:
        return "The mouth follows the voice", evidence
    return "The mouth does not yet follow the voice", evidence


def p_text(p: float) -> str:
    """A p value as it is printed: three decimals, or one digit and a power of ten."""
    if p < 1e-99:  # a t test of differences without spread
        return "0"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}".replace("e-0", "e-")


def words(name: str) -> str:
    """An identifier with spaces for underscores."""
    return name.replace("_", " ")


def render(**context: Any) -> str:
    """Fill the template; every text is escaped, the style sheet and script are inlined."""
    loader = FileSystemLoader(TEMPLATES)
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "p": p_text, "words": words}
    parts = {name: Markup((TEMPLATES / f"report.{name}").read_text("utf-8")) for name in ("css", "js")}
    return environment.get_template("report.html.j2").render(**parts, **context)
