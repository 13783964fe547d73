"""The page of an evaluation: models by tasks, what each number comes from, and what failed.

Reads the entries of results.json; imports no matplotlib.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from tessera.files import JsonObject, write_whole
from tessera.quantities import NOTHING, short_number
from tessera.reporting.html import document
from tessera.reporting.results_curves import curves

_STYLE = """
td.best a { font-weight: 650; text-decoration-thickness: 2px; }
td.best::before { content: "\\2605\\00a0"; color: var(--source-2); }
td small { color: var(--muted); }
td.failed, .failed { color: var(--source-1); }
a { color: inherit; }
.scroll th:first-child { position: sticky; left: 0; background: var(--page); }
.scroll th:first-child { max-width: 11rem; }
.scroll thead th { overflow-wrap: normal; white-space: nowrap; }
.scroll thead th small { display: inline-block; max-width: 8rem; white-space: normal; }
.details td, .details th { font-size: .88rem; }
.details tbody th { min-width: 8.5rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
.pareto, .curves { max-width: 34rem; }
.pareto text, .curves text { font-size: 12px; fill: var(--ink); }
.pareto .axis, .curves .axis { fill: var(--muted); }
.key { margin-right: 1rem; white-space: nowrap; }
.key > i { display: inline-block; width: .8rem; height: .2rem; margin: 0 .35rem .2rem 0; }
"""
_FRACTIONS = ("loss", "gain", "tokens_per_second", "pseudo_perplexity")
"""The start of metrics that are shown as they are; of all others a hundredfold."""


def write_results_page(entries: Sequence[JsonObject], out: Path, command: str) -> None:
    """Write `out/index.html`.

    Args:
        entries: of results.json.
        out: the folder that also holds the records the page links to.
        command: what wrote it last.
    """
    tasks = list(dict.fromkeys(entry["task"] for entry in entries))
    models = list(dict.fromkeys(entry["model"] for entry in entries))
    cells = {(entry["model"], entry["task"]): entry for entry in entries}
    answers = {task: [cells[m, task] for m in models if (m, task) in cells] for task in tasks}
    finished = [task for task in tasks if any(entry["runs"] for entry in answers[task])]
    body = [
        "<h1>What the models are good for</h1>",
        *(f"<p>{escape(line)}</p>" for line in _lead(models, tasks, cells)),
        _overview(models, tasks, cells),
        _pareto(models, tasks, cells),
        _failures(entries),
        *(_task(task, answers[task]) for task in finished),
        _unfinished([task for task in tasks if task not in finished]),
        f"<h2>The command</h2><pre>{escape(command)}</pre>",
    ]
    page = document("Evaluation", [part for part in body if part], _STYLE)
    write_whole(out / "index.html", page.encode())


def _lead(
    models: Sequence[str], tasks: Sequence[str], cells: Mapping[tuple[str, str], JsonObject]
) -> Iterable[str]:
    entries = list(cells.values())
    meant = _meant(models, tasks, cells)
    metrics = list(dict.fromkeys(_metric_name(e) for e in entries if e["task"] in meant))
    mixed = metrics if len(metrics) > 1 else []
    yield (
        f"{_counted(len(models), 'model')} on {_counted(len(tasks), 'task')}: the mean over seeds, "
        "and their standard deviation where there is more than one. A star marks the best of a "
        "column, and who is no further from it than a spread. A dash: not asked."
    )
    if mixed:
        yield (
            f"The mean is over scores of different kinds ({', '.join(mixed)}), each a hundredfold: "
            "it orders models, and is no score by itself."
        )
    earlier = [entry for entry in entries if entry.get("earlier")]
    asked = len(entries) - len(earlier)
    waiting = sum(e["state"] == "waiting" for e in entries if not e.get("earlier"))
    if waiting:
        yield f"Not finished: {waiting} of {asked} numbers are still to come."
    if earlier:
        by_model: dict[str, list[str]] = {}
        for entry in earlier:
            by_model.setdefault(entry["model"], []).append(entry["task"])
        alike: dict[str, list[str]] = {}
        for model, some in by_model.items():
            alike.setdefault(", ".join(some), []).append(model)
        listed = "; ".join(f"{', '.join(some)} on {tasks}" for tasks, some in alike.items())
        left = sum(entry["state"] == "waiting" for entry in earlier)
        are = "is" if left == 1 else "are"
        unfinished = f" {left} of these {are} not finished: ask again." if left else ""
        yield f"As an earlier command left them, and not asked by this one: {listed}.{unfinished}"


def _overview(
    models: Sequence[str], tasks: Sequence[str], cells: Mapping[tuple[str, str], JsonObject]
) -> str:
    best = {
        task: _best([cells[model, task] for model in models if (model, task) in cells])
        for task in tasks
    }
    metrics = {entry["task"]: _metric_name(entry) for entry in cells.values()}
    head = "".join(
        f'<th scope="col"><a href="#{_anchor(task)}">{escape(task)}</a>'
        f"<br><small>{escape(metrics[task])}</small></th>"
        for task in tasks
    )
    meant = _meant(models, tasks, cells)
    if meant:
        head = f'<th scope="col">mean<br><small>of {len(meant)} tasks</small></th>{head}'
    lines = ""
    for model in models:
        row = "".join(_cell(cells.get((model, task)), best[task], _anchor(task)) for task in tasks)
        if meant:
            row = f"<td>{100 * _mean_score(model, meant, cells):.1f}</td>{row}"
        lines += f'<tr><th scope="row">{escape(model)}</th>{row}</tr>\n'
    return (
        f'<div class="scroll"><table><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _meant(
    models: Sequence[str], tasks: Sequence[str], cells: Mapping[tuple[str, str], JsonObject]
) -> list[str]:
    """The tasks that a mean is over: scores of which more is better, that every model has."""
    shared = []
    for task in tasks:
        asked = [cells.get((model, task)) for model in models]
        if all(
            entry is not None
            and entry["mean"] is not None
            and not entry["lower_is_better"]
            and entry["kind"] != "efficiency"
            and not _only_chooses(entry)
            for entry in asked
        ):
            shared.append(task)
    return shared if len(shared) > 1 else []


def _only_chooses(entry: JsonObject) -> bool:
    """Whether a search has scores of validation alone: others start from it, and are the result."""
    return entry["kind"] in ("retrieval", "late_interaction") and entry["split"] == "validation"


def _mean_score(
    model: str, tasks: Sequence[str], cells: Mapping[tuple[str, str], JsonObject]
) -> float:
    return statistics.fmean(cells[model, task]["mean"] for task in tasks)


def _best(entries: Sequence[JsonObject]) -> set[str]:
    """The models of a task with the best mean, or one no further from it than a spread."""
    known = [entry for entry in entries if entry["mean"] is not None]
    if not known:
        return set()
    pick: Callable[..., JsonObject] = min if known[0]["lower_is_better"] else max
    best = pick(known, key=lambda entry: entry["mean"])
    near = {
        entry["model"]
        for entry in known
        if abs(entry["mean"] - best["mean"]) <= max(entry["spread"] or 0, best["spread"] or 0)
    }
    return near if len(near) < len(known) else set()  # alone, or all alike


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _cell(entry: JsonObject | None, best: set[str], anchor: str) -> str:
    if entry is None:
        return f"<td>{NOTHING}</td>"
    if entry["mean"] is None:
        said = "waiting" if entry["state"] == "waiting" else "failed"
        if said == "waiting" and entry.get("earlier"):
            said = "not finished"
        css = ' class="failed"' if said == "failed" else ""
        return f'<td{css}><a href="#{anchor}">{said}</a></td>'
    css = ' class="best"' if entry["model"] in best else ""
    mark = " <small>(some failed)</small>" if entry["state"] == "part" else ""
    link = f'<a href="#{anchor}">{_value(entry, entry["mean"])}</a>'
    return f"<td{css}>{link}{_spread(entry)}{mark}</td>"


def _spread(entry: JsonObject) -> str:
    if entry["spread"] is None:
        return ""
    return f" <small>&plusmn; {_value(entry, entry['spread'])}</small>"


def _metric_name(entry: JsonObject) -> str:
    name = str(entry["metric"]).replace("_", " ")
    if entry["kind"] == "efficiency":
        name += ", variable short"
    return f"{name}, less is better" if entry["lower_is_better"] else name


def _value(entry: JsonObject, value: float) -> str:
    return number(value, entry["metric"])


def number(value: float, metric: str) -> str:
    """A score as people write it: shares and correlations a hundredfold."""
    if not math.isfinite(value):
        return "not finite"
    if metric.startswith("tokens_per_second"):
        return short_number(value)
    if metric.startswith(_FRACTIONS):
        return f"{value:.3f}"
    return f"{100 * value:.1f}"


def _failures(entries: Sequence[JsonObject]) -> str:
    failed = [entry for entry in entries if entry["message"]]
    if not failed:
        return ""
    alike: dict[tuple[str, str], list[JsonObject]] = {}
    for entry in failed:  # what is wrong with a model is so in each of its tasks
        when = " (in an earlier command)" if entry.get("earlier") else ""
        alike.setdefault((entry["model"], entry["message"] + when), []).append(entry)
    lines = "".join(
        f"<li><b>{escape(model)}</b>, {escape(', '.join(entry['task'] for entry in some))}: "
        f"{escape(message)}{_links([job for entry in some for job in entry['failed_jobs']])}</li>"
        for (model, message), some in alike.items()
    )
    return f'<h2 class="failed">What failed</h2><ul>{lines}</ul>'


def _links(jobs: Sequence[str]) -> str:
    links = ", ".join(
        f'<a href="failed/{escape(job)}.json">job {number}</a>'
        for number, job in enumerate(jobs, 1)
    )
    return f" ({links})" if links else ""


def _task(task: str, entries: Sequence[JsonObject]) -> str:
    parts = [f'<h2 id="{_anchor(task)}">{escape(task)}</h2>']
    first = next(entry for entry in entries if entry["runs"])
    said = f"{str(first['kind']).replace('_', ' ')}; scores of the {first['split']} split."
    chosen = [entry for entry in entries if entry["points_tried"] > 1 and entry["point"]]
    if chosen:
        said += " The point of the grid was chosen on validation with the first seed."
    parts.append(f'<p class="caption">{escape(said)}</p>')
    parts.append(_runs(entries))
    parts.append(_details(entries))
    notes = dict.fromkeys(
        f"{entry['model']}: {note}" for entry in entries for note in entry["notes"]
    )
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    commands = dict.fromkeys(run["command"] for entry in entries for run in entry["runs"])
    about = "\n".join(commands) + "\n\n" + _machine(entries)
    parts.append(
        f"<details><summary>Commands and versions</summary><pre>{escape(about)}</pre></details>"
    )
    return "".join(parts)


def _unfinished(tasks: Sequence[str]) -> str:
    if not tasks:
        return ""
    names = ", ".join(f'<span id="{_anchor(task)}">{escape(task)}</span>' for task in tasks)
    return f"<h2>Without a finished job</h2><p>{names}</p>"


def _machine(entries: Sequence[JsonObject]) -> str:
    lines = dict.fromkeys(
        ", ".join([entry["device"], *(f"{k} {v}" for k, v in entry["versions"].items())])
        for entry in entries
        if entry["runs"]
    )
    return "\n".join(lines)


def _runs(entries: Sequence[JsonObject]) -> str:
    """A line a model: each seed's score with its record, and the other metrics."""
    names = list(dict.fromkeys(name for entry in entries for name in entry["scores"]))
    others = [name for name in names if name != entries[0]["metric"]][:8]
    head = "".join(
        f'<th scope="col">{escape(name.replace("_", " "))}</th>'
        for name in [_metric_name(entries[0]), *others, "each seed", "chosen"]
    )
    lines = ""
    for entry in entries:
        if not entry["runs"]:
            continue
        runs = ", ".join(
            f'<a href="{escape(run["record"])}" title="seed {run["seed"]}, {run["seconds"]:.0f} s, '
            f'{escape(run["finished"])}">{_value(entry, run["value"])}</a>'
            for run in entry["runs"]
        )
        cells = [f"{_value(entry, entry['mean'])}{_spread(entry)}"]
        cells += [
            number(entry["scores"][name], name) if name in entry["scores"] else NOTHING
            for name in others
        ]
        point = ", ".join(f"{k.replace('_', ' ')} {v:g}" for k, v in entry["point"].items())
        cells += [runs, escape(point) or NOTHING]
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        lines += f'<tr><th scope="row">{escape(entry["model"])}</th>{values}</tr>\n'
    return (
        f'<div class="scroll details"><table><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _details(entries: Sequence[JsonObject]) -> str:
    """The tables that a task leaves, of all models beside one another."""
    titles = list(dict.fromkeys(table["title"] for entry in entries for table in entry["tables"]))
    return "".join(_detail(title, entries) for title in titles)


def _detail(title: str, entries: Sequence[JsonObject]) -> str:
    found = [
        (entry["model"], table)
        for entry in entries
        for table in entry["tables"]
        if table["title"] == title
    ]
    columns = found[0][1]["columns"]
    head = f'<th scope="col">{escape(columns[0])}</th><th scope="col">model</th>'
    head += "".join(f'<th scope="col">{escape(name)}</th>' for name in columns[1:])
    names = list(dict.fromkeys(str(row[0]) for _, table in found for row in table["rows"]))
    every = [row for _, table in found for row in table["rows"]]
    large = [
        any(isinstance(v, float) and abs(v) >= 1000 for v in c) for c in zip(*every, strict=True)
    ]
    lines = ""
    for name in names:
        rows = [(m, row) for m, table in found for row in table["rows"] if str(row[0]) == name]
        for place, (model, row) in enumerate(rows):
            first = escape(name) if place == 0 else ""
            values = "".join(
                f"<td>{_plain(value, many)}</td>"
                for value, many in zip(row[1:], large[1:], strict=True)
            )
            css = "" if place == 0 else ' class="inner"'
            lines += f'<tr{css}><th scope="row">{first}</th><td>{escape(model)}</td>{values}</tr>\n'
    return (
        f"<h3>{escape(title)}</h3>{curves(found)}"
        f'<div class="scroll details"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _plain(value: object, large: bool) -> str:
    """A value of a table; in a column of `large` numbers, without decimals."""
    if value is None:
        return NOTHING
    if isinstance(value, float):
        return f"{value:,.0f}" if large else f"{value:.3f}"
    return escape(str(value))


def _anchor(task: str) -> str:
    return "task-" + "".join(c if c.isalnum() else "-" for c in task)


# ---- quality against speed


def _pareto(
    models: Sequence[str], tasks: Sequence[str], cells: Mapping[tuple[str, str], JsonObject]
) -> str:
    """Each model's mean score over the tasks that all share, against its tokens a second."""
    speeds, scores = {}, {}
    shared = _meant(models, tasks, cells)
    for model in models:
        speed = [
            entry["mean"]
            for task in tasks
            if (entry := cells.get((model, task))) is not None and entry["kind"] == "efficiency"
        ]
        if speed and speed[0] and shared:
            speeds[model] = speed[0]
            scores[model] = 100 * _mean_score(model, shared, cells)
    if len(speeds) < 2:
        return ""
    caption = f"Mean of {', '.join(shared)}, against tokens a second of {_speed_of(cells)}."
    return (
        f'<h2>Quality and speed</h2><p class="caption">{escape(caption)}</p>'
        f"{_scatter(speeds, scores)}"
    )


def _speed_of(cells: Mapping[tuple[str, str], JsonObject]) -> str:
    return next(task for (_, task), entry in cells.items() if entry["kind"] == "efficiency")


def _scatter(speeds: Mapping[str, float], scores: Mapping[str, float]) -> str:
    width, height, left, bottom = 480.0, 260.0, 44.0, 34.0

    def place(value: float, values: Iterable[float], start: float, end: float) -> float:
        low, high = min(values), max(values)
        share = 0.5 if high == low else (value - low) / (high - low)
        return start + (0.08 + 0.72 * share) * (end - start)

    logs = {model: math.log(speed) for model, speed in speeds.items()}
    marks = ""
    for number_, model in enumerate(speeds):
        x = place(logs[model], logs.values(), left, width)
        y = place(scores[model], scores.values(), height - bottom, 12)
        marks += (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="var(--source-{number_ % 6})"/>'
            f'<text x="{x:.1f}" y="{y - 11:.1f}" text-anchor="middle">{escape(model[-28:])}</text>'
            f'<text class="axis" x="{x:.1f}" y="{height - 16:.0f}" text-anchor="middle">'
            f"{short_number(speeds[model])}</text>"
            f'<text class="axis" x="2" y="{y + 4:.1f}">{scores[model]:.1f}</text>'
        )
    return (
        f'<svg class="pareto" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        'aria-label="quality against tokens a second">'
        f'<line x1="{left}" y1="{height - bottom}" x2="{width}" y2="{height - bottom}" '
        'stroke="var(--muted)"/>'
        f'<line x1="{left}" y1="8" x2="{left}" y2="{height - bottom}" stroke="var(--muted)"/>'
        f"{marks}"
        f'<text class="axis" x="{width}" y="{height - 2}" text-anchor="end">tokens a second</text>'
        "</svg>"
    )
