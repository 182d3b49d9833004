"""The result card of a run: one page and one JSON with all that a quoted number depends on, and its limits.

It is written from files of the run; nothing is measured again.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.runs import RunFolder, atomic_write, fingerprint, hash_path, sha256_file, write_json
from common.untrusted.text import code, markdown
from eval.manifest import FLOOR, TRUTH
from eval.metrics.clip_metrics import METRICS
from eval.reporting.summary import read_optional, read_rows, scored_methods
from eval.scoring.eval_table import by_clip, read_metrics
from eval.sets.catalog import TEST_SET_FILE, TestSet, read_test_set

VERSIONS = ("torch", "diffusers", "transformers", "peft", "deepspeed", "av", "numpy", "scipy")
# Deviations from the scripts that the field's numbers come from, in every run.
DEVIATIONS = (
    "Sync: tracks of 25 detections are scored (syncnet_python: 100), so that clips of a second or two count.",
    "FID and FVD: no paper of the field says frames, windows and size; ours are those of the protocol named above.",
    "FID and FVD at so few clips are mostly bias: read them against the floor row, never against other sets.",
)
READ_AS = (
    "Mean with the 95 % interval over clips, ± jackknife error for a whole set; in brackets how many clips have a "
    "value, where not all have."
)
EXAMPLES = ("sync_c", "sync_d", "csim", "iqa", "ase", "psnr")


def make_card(run: RunFolder, test_set: TestSet | None = None) -> dict[str, Any]:
    """The card of a judged run; `test_set` is the list its clips are of, by default the one they were imported with.

    Raises CompareError for a run without metrics and ListError for a list in it that was changed.
    """
    rows = read_metrics(run)
    imported = Path(run.root) / TEST_SET_FILE
    if test_set is None and imported.is_file():
        test_set = read_test_set(imported)
    about = _test_set(run, test_set)
    scores = read_optional(run.report / "scores.json") or {}
    recipe = yaml.safe_load(run.recipe_yaml.read_text("utf-8")) if run.recipe_yaml.exists() else {}
    versions = read_optional(Path(run.root) / "versions.json") or {}
    models = _models(run, versions, scores)
    protocol = sorted({row["protocol"] for row in rows})
    card = {
        "run": Path(run.root).name,
        "recipe": recipe.get("name"),
        "models": {**models, "weights": recipe.get("weights")},
        "inference": (recipe.get("generate") or {}) if models else {},
        "test_set": about,
        "protocol": protocol,
        "judges": scores.get("models", {}),
        "evaluation": scores.get("config", {}),
        "versions": _versions(versions),
        "hardware": hardware(),
        "methods": {name: _method(scored) for name, scored in scores.get("methods", {}).items()},
        "comparisons": scores.get("comparisons", []),
        "flags": scores.get("flags", []),
        "deviations": _deviations(recipe, about),
        "examples": examples(rows, scored_methods(scores).judged),
    }
    return card | {"id": fingerprint({name: card[name] for name in ("models", "inference", "test_set", "protocol")})}


def write_card(run: RunFolder, test_set: TestSet | None = None) -> Path:
    """Write `report/card.json` and `report/card.md`; the path of the second. Raises as `make_card`."""
    card = make_card(run, test_set)
    write_json(run.report / "card.json", card)
    path = run.report / "card.md"
    with atomic_write(path) as temporary:
        temporary.write_text(card_markdown(card), "utf-8")
    return path


def examples(rows: Sequence[Mapping[str, Any]], method: str) -> dict[str, dict[str, dict[str, Any]]]:
    """metric -> best, median and worst -> clip_id and value, of one method."""
    chosen_clips = {}
    for metric in EXAMPLES:
        values, direction = by_clip(rows, method, metric), METRICS[metric].better
        ranked = sorted((direction * value, clip) for clip, value in values.items())
        chosen = {title: {"clip_id": clip, "value": values[clip]} for title, clip in best_median_worst(ranked)}
        if chosen:
            chosen_clips[metric] = chosen
    return chosen_clips


def best_median_worst(ranked: Sequence[tuple[float, str]]) -> list[tuple[str, str]]:
    """(title, clip) of the ends and the middle of clips in ascending order of score; fewer when there are fewer."""
    if not ranked:
        return []
    places = {"best": len(ranked) - 1, "median": len(ranked) // 2, "worst": 0}
    picked: dict[int, str] = {}
    for title, place in places.items():
        picked.setdefault(place, title)
    return [(title, ranked[place][1]) for place, title in picked.items()]


def hardware() -> dict[str, Any]:
    """The machine this runs on: processor, cores and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count(), "gpus": gpus}


def card_markdown(card: Mapping[str, Any]) -> str:
    """The card as a page."""
    test_set = card["test_set"]
    listed = f", list {code(test_set['list'])} of {test_set['listed']} clips" if test_set["list"] else ""
    of = f"{markdown(test_set['name'])}, {test_set['clips']} clips judged {code(test_set['judged'])}{listed}"
    lines = [f"# Result card {card['id']}", "", f"- run {code(card['run'])}, recipe {code(card['recipe'])}"]
    lines += [
        f"- protocol {code(', '.join(card['protocol']))}",
        f"- test set: {of}",
        "",
        *_score_table(card["methods"]),
        "",
    ]
    lines += [READ_AS, ""]
    if card["flags"]:
        lines += ["## Flags", "", *(f"- {markdown(flag)}" for flag in card["flags"]), ""]
    if card["comparisons"]:
        lines += ["## Paired tests", "", *_tests(card["comparisons"]), ""]
    lines += ["## Best, median and worst clips", "", *_examples(card["examples"]), ""]
    for title, name in (
        ("Models", "models"),
        ("Inference", "inference"),
        ("Judges", "judges"),
        ("Versions", "versions"),
    ):
        lines += [f"## {title}", "", *(f"- {markdown(key)}: {code(value)}" for key, value in card[name].items()), ""]
    machine = card["hardware"]
    lines += ["## Hardware", "", f"{machine['machine']}, {machine['cores']} cores, {len(machine['gpus'])} GPUs", ""]
    return "\n".join([*lines, "## Known deviations", "", *(f"- {text}" for text in card["deviations"])]) + "\n"


def _models(run: RunFolder, versions: Mapping[str, Any], scores: Mapping[str, Any]) -> dict[str, str]:
    """Content hash of each model behind the videos; empty where the videos were made elsewhere.

    The judges are left out, the card lists them apart. What the run trained is in `checkpoints/` under the name of its
    role and replaces what training began with; `best` there is another choice of the same model.
    """
    judges = scores.get("models", {})
    models = {role: digest for role, digest in versions.get("models", {}).items() if digest and role not in judges}
    exports = sorted(path.parent for path in (Path(run.root) / "checkpoints").glob("*/config.json"))
    return models | {path.name: hash_path(path) for path in exports if not (path / "best.json").exists()}


def _test_set(run: RunFolder, chosen: TestSet | None) -> dict[str, Any]:
    """Name, rule, numbers and hashes: of the list the clips are of, where there is one, and of what was judged, by the
    ids of the clips and the bytes of their real videos. `outside` counts judged clips that are not in the list."""
    manifest = read_rows(Path(run.root) / "videos" / "manifest.parquet")
    real = {row["clip_id"]: Path(run.root) / (row.get("reference") or "") for row in manifest if row["method"] != FLOOR}
    judged = fingerprint({clip: sha256_file(path) if path.is_file() else "" for clip, path in real.items()})
    about: dict[str, Any] = {"name": "clips of the run", "list": None}
    if chosen is not None:
        outside = real.keys() - {clip.clip_id for clip in chosen.clips}
        about = {"name": chosen.name, "rule": chosen.rule, "list": chosen.sha256}
        about |= {"listed": len(chosen.clips), "outside": len(outside)}
    return {**about, "clips": len(real), "judged": judged}


def _versions(versions: Mapping[str, Any]) -> dict[str, str]:
    packages = versions.get("packages", {})
    code = {f"code/{name}": digest[:16] for name, digest in sorted(versions.get("code", {}).items())}
    named = {name: packages[name] for name in VERSIONS if name in packages}
    return {"python": versions.get("python", ""), **named, **code}


def _method(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    fields = ("value", "low", "high", "se", "sd", "seed_sd", "n", "clips", "coverage", "status", "unscored")
    return {metric: {name: score[name] for name in fields if name in score} for metric, score in scores.items()}


def _deviations(recipe: Mapping[str, Any], test_set: Mapping[str, Any]) -> list[str]:
    outside, judged = test_set.get("outside", 0), test_set["clips"] - test_set.get("outside", 0)
    other = [f"Test set: {outside} of the judged clips are not in the list, so its name does not hold for the numbers."]
    fewer = [f"Test set: {judged} of the {test_set.get('listed')} clips of the list were judged."]
    small = ["Small world: drawn faces and tiny judges; numbers say whether a fault is found, not how good a face is."]
    of_list = [*(other if outside else []), *(fewer if judged < test_set.get("listed", 0) else [])]
    return [*of_list, *(small if recipe.get("weights") == "miniature" else []), *DEVIATIONS]


def _score_table(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shown = [
        m for m in METRICS if METRICS[m].shown and any(_value(scores, m) is not None for scores in methods.values())
    ]
    order = [*(name for name in methods if name not in (TRUTH, FLOOR)), *(n for n in (TRUTH, FLOOR) if n in methods)]
    lines = [f"| method | {' | '.join(METRICS[name].label for name in shown)} |", f"|{'---|' * (len(shown) + 1)}"]
    for method in order:
        cells = [_cell(methods[method].get(name, {}), METRICS[name].digits) for name in shown]
        lines.append(f"| {markdown(method.replace('_', ' '))} | {' | '.join(cells)} |")
    return lines


def _value(scores: Mapping[str, Any], metric: str) -> float | None:
    value: float | None = scores.get(metric, {}).get("value")
    return value


def _cell(score: Mapping[str, Any], digits: int) -> str:
    if score.get("value") is None:
        return "–"
    text = f"{score['value']:.{digits}f}"
    if score.get("low") is not None:
        text += f" [{score['low']:.{digits}f}, {score['high']:.{digits}f}]"
    elif "se" in score:
        text += f" ± {score['se']:.{digits}f}"
    return f"{text} ({score['n']}/{score['clips']})" if score.get("coverage", 1) < 1 else text


def _tests(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| metric | a | b | difference | p | p (Holm) | n |", "|---|---|---|---|---|---|---|"]
    for test in comparisons:
        metric = METRICS[test["metric"]]
        figures = f"{test['difference']:.{metric.digits}f} | {test['p']:.2g} | {test['p_holm']:.2g} | {test['n']}"
        lines.append(f"| {metric.label} | {markdown(test['a'])} | {markdown(test['b'])} | {figures} |")
    return lines


def _examples(examples_of: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    lines = ["| metric | best | median | worst |", "|---|---|---|---|"]
    for metric, chosen in examples_of.items():
        texts = [
            f"{markdown(chosen[title]['clip_id'])} ({chosen[title]['value']:.{METRICS[metric].digits}f})"
            if title in chosen
            else "–"
            for title in ("best", "median", "worst")
        ]
        lines.append(f"| {METRICS[metric].label} | {' | '.join(texts)} |")
    return lines
