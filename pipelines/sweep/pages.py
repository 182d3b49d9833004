"""The results of a sweep as files: Markdown to read, CSV and Parquet to query, with plots."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from common.recipe import dump_recipe
from common.runs import atomic_write, read_json
from common.untrusted.text import code
from common.untrusted.text import markdown as escaped
from eval.features.records import SET_METRICS
from eval.metrics.clip_metrics import METRICS
from eval.reporting.reported import Ordering
from pipelines.sweep.plots import ARROWS, write_plots, write_strips
from pipelines.sweep.settings import Places, SweepConfig
from pipelines.sweep.table import COLUMNS, Entry, context_rows, is_better, is_worse, orderings, sweep_entries

READ_AS = (
    "Mean over clips and seeds ± standard deviation between seeds. In brackets the paired difference to *{base}*: per "
    "clip, averaged over seeds, Wilcoxon's test with Holm's correction over the page; **bold** where it rejects in "
    "the row's favour (p < 0.05), † where it rejects against it. FID and FVD are of whole sets and long videos few: "
    "theirs is the mean over seeds with its 95 % interval over the seeds (Student's t), and not tested."
)
ORDERS_ONLY = "Other clips, sizes and judges: values are not to be compared, orders are."
VERSIONS = ("torch", "diffusers", "peft", "deepspeed", "numpy", "scipy")


def write_results(config: SweepConfig, places: Places, folder: Path, command: str) -> Path:
    """Write `table.md`, `table.csv`, `table.parquet`, `sweep.yaml` and `plots/` into `folder`; the path of the first.

    The page lists rows that are not finished. `command` is the one that made it.
    """
    entries, context = sweep_entries(config, places), context_rows(config, places)
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([asdict(entry) for entry in [*entries, *context]], _schema())
    with atomic_write(folder / "table.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    figures = [*write_strips(config, places, folder / "plots"), *write_plots(config, entries, folder / "plots")]
    text = {
        "table.csv": _csv(table),
        "sweep.yaml": dump_recipe(config),
        "table.md": markdown(config, places, entries, context, figures, command),
    }
    for name, content in text.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(content, "utf-8")
    return folder / "table.md"


def markdown(
    config: SweepConfig,
    places: Places,
    entries: Sequence[Entry],
    context: Sequence[Entry],
    figures: Sequence[Path],
    command: str,
) -> str:
    """The whole page."""
    short, long = ([entry for entry in entries if entry.long == kind] for kind in (False, True))
    seeds = len(config.seeds)
    lines = [
        f"# Sweep: {escaped(config.name)}",
        "",
        f"Recipe {code(config.recipe)}, {seeds} seeds a row. Made with {code(command)}.",
        "",
    ]
    lines += _unfinished(config, entries)
    lines += [READ_AS.format(base=escaped(_label(short, config.base))), ""]
    lines += _table([*short, *context], config.metrics)
    if long:
        base = escaped(_label(long, config.long_base)) if config.long_base else ""
        lines += ["", "## Long videos", "", f"Differences to *{base}*." if base else "No base row.", ""]
        lines += _table(long, config.long_metrics)
    if orders := orderings(short):
        lines += ["", "## Reported by the paper", "", *_reported(config, short, orders)]
    lines += ["", "## Pictures", "", *(f"![{path.stem}](plots/{path.name})" for path in figures)] if figures else []
    return "\n".join([*lines, "", "## Versions", "", *_versions(config, places)]) + "\n"


def _table(entries: Sequence[Entry], metrics: Sequence[str]) -> list[str]:
    if not entries:
        return ["No row is finished."]
    shown = [name for name in metrics if any(e.metric == name and e.mean is not None for e in entries)]
    absent = [name for name in metrics if name not in shown]
    heads = [METRICS[name].label + ARROWS[METRICS[name].better] for name in shown]
    lines = [_line(["row", *heads, "clips"]), _line(["---"] * (len(heads) + 2))]
    for row in dict.fromkeys(entry.row for entry in entries):
        mine = {entry.metric: entry for entry in entries if entry.row == row}
        counts = sorted(
            {(e.clips, e.listed) for e in mine.values() if e.metric in shown and e.metric not in SET_METRICS}
        )
        of = ", ".join(f"{clips}/{listed}" for clips, listed in counts)
        label = next(iter(mine.values())).label
        lines.append(_line([escaped(label), *(_cell(mine[name]) if name in mine else "" for name in shown), of]))
    reasons = {f"{METRICS[name].label}: {next(e.status for e in entries if e.metric == name)}" for name in absent}
    return [*lines, *(["", "Not here: " + escaped("; ".join(sorted(reasons))) + "."] if reasons else [])]


def _cell(entry: Entry) -> str:
    if entry.mean is None:
        return escaped(entry.status)
    digits = METRICS[entry.metric].digits
    text = _number(entry.mean, digits) + (f" ± {entry.seed_sd:.{digits}f}" if entry.seed_sd is not None else "")
    if entry.difference is None or not METRICS[entry.metric].better:
        return text
    text = f"{text} ({'+' if entry.difference > 0 else ''}{_number(entry.difference, digits)}{_between(entry)})"
    if is_better(entry):
        return f"**{text}**"
    return f"{text} †" if is_worse(entry) else text


def _between(entry: Entry) -> str:
    """The interval of a difference that has no test."""
    if entry.p is not None or entry.difference_low is None:
        return ""
    digits = METRICS[entry.metric].digits
    return f"; {_number(entry.difference_low, digits)} .. {_number(entry.difference_high, digits)}"


def _reported(config: SweepConfig, entries: Sequence[Entry], orders: Sequence[Ordering]) -> list[str]:
    """The paper's numbers in columns of their own, and the pairs of rows that are ordered differently here."""
    metrics = [order.metric for order in orders]
    label = {entry.row: escaped(entry.label) for entry in entries}
    heads = [f"{METRICS[name].label}, {whose}" for name in metrics for whose in ("ours", "*reported*")]
    lines = [
        f"{escaped(config.reported)}. {ORDERS_ONLY}",
        "",
        _line(["row", *heads]),
        _line(["---"] * (len(heads) + 1)),
    ]
    for row in dict.fromkeys(entry.row for entry in entries if entry.reported is not None):
        mine = {entry.metric: entry for entry in entries if entry.row == row}
        pairs = [(_number(mine[name].mean, METRICS[name].digits), _plain(mine[name].reported)) for name in metrics]
        lines.append(_line([label[row], *(text for pair in pairs for text in pair)]))
    lines += ["", _line(["metric", "rows", "Kendall's tau", "pairs the other way round"]), _line(["---"] * 4)]
    for order in orders:
        turned = "; ".join(f"{label[a]} / {label[b]}" for a, b in order.reversed) or "none"
        rows = str(len(order.rows))
        lines.append(_line([METRICS[order.metric].label, rows, _number(order.tau, 2), turned]))
    return lines


def _unfinished(config: SweepConfig, entries: Sequence[Entry]) -> list[str]:
    seeds = {entry.row: max(e.seeds for e in entries if e.row == entry.row) for entry in entries}
    rows = [name for name, row in config.rows.items() if not row.network]
    lacking = [f"{name} ({seeds.get(name, 0)} of {len(config.seeds)} seeds)" for name in rows]
    lacking = [text for name, text in zip(rows, lacking, strict=True) if seeds.get(name, 0) < len(config.seeds)]
    return [f"**Not finished:** {escaped(', '.join(lacking))}.", ""] if lacking else []


def _versions(config: SweepConfig, places: Places) -> list[str]:
    path = places.row(config.base, config.seeds[0]) / "versions.json"
    if not path.exists():
        return ["The base row has not been made yet."]
    versions = read_json(path)
    packages = [f"{name} {versions['packages'][name]}" for name in VERSIONS if name in versions["packages"]]
    code = [f"{name} `{digest[:12]}`" for name, digest in sorted(versions["code"].items())]
    models = [f"{role} `{digest[:12]}`" for role, digest in sorted(versions["models"].items()) if digest]
    return [
        f"- Python {versions['python']}, {', '.join(packages)}",
        f"- code of the base row: {', '.join(code)}",
        f"- models of the base row: {', '.join(models)}",
    ]


def _label(entries: Sequence[Entry], row: str) -> str:
    return next((entry.label for entry in entries if entry.row == row), row)


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _csv(table: pa.Table) -> str:
    text = io.StringIO()
    lines = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    lines.writeheader()
    lines.writerows(table.to_pylist())
    return text.getvalue()


def _schema() -> pa.Schema:
    kinds: Mapping[str, pa.DataType] = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int32()}
    return pa.schema([(name, kinds.get(kind, pa.float64())) for name, kind in _kinds().items()])


def _kinds() -> dict[str, str]:
    annotations = Entry.__annotations__
    return {name: getattr(annotations[name], "__name__", "float") for name in COLUMNS}
