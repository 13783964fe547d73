"""One self-contained page about a chain of phases, and the table the terminal shows of it."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from tessera.files import write_whole
from tessera.quantities import NOTHING, short_number
from tessera.reporting import plots, summary
from tessera.reporting.canvas import (
    HUES,
    NARROW_INCHES,
    WIDE_INCHES,
    phase_edges,
    render,
)
from tessera.reporting.html import document, save_button
from tessera.reporting.metrics import read_chain
from tessera.reporting.phase import Phase, predicted_tokens, source_names

_SMOOTHED = (
    f"the mean over {plots.SMOOTHED_SHARE:.0%} of a phase's steps, {plots.FEWEST_SMOOTHED} at least"
)
_POSITION = "Masked tokens by their place in the document, the same each time."
_CONTEXT = (
    "The same masked tokens, far into long documents, with all of it in view and with little."
)
_RECALL = (
    "Masked names of random tokens, by how many tokens before the same phrase stood with the name "
    "in it; \u201cno mention\u201d: nowhere."
)


def write_report(
    run_folders: Sequence[str | Path], out_path: str | Path, *, refresh_seconds: int | None = None
) -> None:
    """Write one HTML file, which needs no other, about the run folders of a chain in order.

    Same run folders, same bytes.

    Raises:
        ValueError: naming the folder, file or line that cannot be read or written.
    """
    phases = read_chain(run_folders)
    out = Path(out_path)
    if out.is_dir():
        raise ValueError(f"{out}: is a folder; name the file to write, such as {out}/report.html")
    parents = {Path(folder).resolve().parent.name for folder in run_folders}
    page = _page(parents.pop() if len(parents) == 1 else "", phases, refresh_seconds)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, page.encode())


def summary_table(run_folders: Sequence[str | Path]) -> str:
    """The summary as plain text: a column a phase, with the validation loss at its end per source.

    Raises:
        ValueError: naming the folder, file or line that cannot be read.
    """
    return summary.as_text(read_chain(run_folders))


def _page(project: str, phases: Sequence[Phase], refresh_seconds: int | None) -> str:
    names = " \u2192 ".join(phase.name for phase in phases)
    title = escape(names if project in {"", "runs"} else f"{project}: {names}")
    said = [f"<p>{escape(sentence)}</p>" for sentence in summary.sentences(phases)]
    said += [f'<p class="note">{escape(note)}</p>' for note in summary.notes(phases)]
    body = [
        f"<h1>{title}</h1>",
        f'<div class="lead"><div>{"".join(said)}</div>\n{summary_of(phases)}</div>',
        _loss(phases),
        _curves(phases),
        _mixture(phases),
        machines_table(phases),
        _settings(phases),
    ]
    return document(title, [part for part in body if part], refresh_seconds=refresh_seconds)


def summary_of(phases: Sequence[Phase]) -> str:
    """The summary as a table of HTML, a column a phase."""
    head = "".join(f'<th scope="col">{escape(phase.name)}</th>' for phase in phases)
    lines = ""
    for label, cells in summary.rows(phases):
        inner = ' class="inner"' if label.startswith(" ") else ""
        values = "".join(f"<td>{escape(cell)}</td>" for cell in cells or [""] * len(phases))
        lines += f'<tr{inner}><th scope="row">{escape(label.strip())}</th>{values}</tr>\n'
    return (
        f'<div class="scroll saved"><table><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>{lines}</tbody></table>{save_button('summary.csv')}</div>"
    )


def machines_table(phases: Sequence[Phase]) -> str:
    """What each phase ran on, and with which versions; nothing where none recorded it."""
    lines = ""
    for phase in phases:
        for machine in phase.machines:
            versions = machine.get("versions")
            versions = versions if isinstance(versions, dict) else {}
            named = ", ".join(f"{package} {v}" for package, v in versions.items() if v)
            threads = machine.get("threads")
            device = f"{machine.get('ranks', 1)} \u00d7 {machine.get('device', NOTHING)}" + (
                f", {threads} threads each" if threads else ""
            )
            rate = machine.get("matmul_flops_per_second")

            cells = [
                str(machine.get("after_step", 0)),
                device,
                f"{short_number(rate)} FLOP/s in {machine.get('dtype')}"
                if isinstance(rate, float) and rate > 0
                else NOTHING,
                named,
            ]
            row = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            lines += f'<tr><th scope="row">{escape(phase.name)}</th>{row}</tr>\n'
    if not lines:
        return ""
    return (
        '<div class="saved"><h2>Hardware and versions</h2>\n'
        '<p class="caption">The rate is the highest seen of a matrix product on one device: FLOP '
        "utilisation is measured against it.</p>\n"
        '<div class="scroll"><table class="machines"><thead><tr><td></td><th>from step</th>'
        "<th>devices</th><th>rate</th><th>versions</th></tr></thead>\n"
        f"<tbody>{lines}</tbody></table></div>{save_button('machines.csv')}</div>"
    )


def _loss(phases: Sequence[Phase]) -> str:
    wide = render("loss-wide", plots.loss_figure, phases, WIDE_INCHES)
    narrow = render("loss-narrow", plots.loss_figure, phases, NARROW_INCHES)
    if wide is None or narrow is None:
        return ""
    said = [
        f"Grey: the training loss of every step, pale, and {_SMOOTHED}.",
        "Colours: validation loss, on texts and masks that never change.",
        _masking(phases),
    ]
    if phase_edges(phases)[1]:
        said.append("Short phases are drawn wider than their share of the tokens.")
    return (
        f'<figure class="saved">\n<h2>{save_button("loss.svg")}Loss</h2>\n'
        f'<div class="wide" role="img" aria-label="Loss over tokens">{wide}</div>\n'
        f'<div class="narrow" role="img" aria-label="Loss over tokens">{narrow}</div>\n'
        f'<figcaption class="caption">{escape(" ".join(filter(None, said)))}</figcaption>\n'
        "</figure>"
    )


def _masking(phases: Sequence[Phase]) -> str:
    """Why training and validation loss are not at the same height, if they are not."""
    trained = {rate for phase in phases for rate in phase.masking_rates()}
    masked = [phase for phase in phases if not phase.causal]
    validated = {phase.setting("evaluation", "masking_rate") for phase in masked} - {None}
    if not trained or not validated or trained == validated:
        return ""
    spans = [f"{100 * rate:.3g}%" for rate in sorted({min(trained), max(trained)})]
    rates = summary.listed([f"{100 * float(rate):.3g}%" for rate in sorted(validated)])
    others = len(masked) < len(phases)
    where = f"in {summary.listed([phase.name for phase in masked])} " if others else ""
    return (
        f"Training {where}predicts {' to '.join(spans)} of the tokens and validation {rates}, "
        "so they do not lie at the same height."
        f"{' Causal phases predict each next token in both.' if others else ''}"
    )


def _curves(phases: Sequence[Phase]) -> str:
    smoothed = f"Pale: every step. Line: {_SMOOTHED}."
    figures = [
        (
            "Validation accuracy",
            plots.accuracy_figure,
            f"How many {predicted_tokens(phases)} tokens the model guesses.",
        ),
        ("Loss by position", plots.position_figure, _POSITION),
        ("What context is worth", plots.context_figure, _CONTEXT),
        ("Names recalled", plots.recall_figure, _RECALL),
        ("Linear probe", plots.linear_probe_figure, "Of labelled texts, on frozen features."),
        ("Learning rate", plots.learning_rate_figure, ""),
        ("Batch size", plots.batch_figure, _row_lengths(phases)),
        ("Masking rate", plots.masking_figure, f"The share that is predicted. {smoothed}"),
        ("Gradient norm", plots.gradient_figure, smoothed),
        ("Speed", plots.speed_figure, smoothed),
        ("Waiting for data", plots.wait_figure, f"{smoothed} {_waits(phases)}"),
    ]
    parts = []
    for title, draw, caption in figures:
        drawing = render(title, draw, phases)
        if drawing is not None:
            parts.append(
                f'<figure class="saved">\n<h3>{save_button(_file_name(title))}{title}</h3>\n'
                f'<div role="img" aria-label="{title} over tokens">'
                f'{drawing}</div>\n<figcaption class="caption">{escape(caption)}</figcaption>\n'
                "</figure>"
            )
    return '<div class="grid">\n' + "\n".join(parts) + "\n</div>" if parts else ""


def _file_name(title: str) -> str:
    return title.lower().replace(" ", "-") + ".svg"


def _row_lengths(phases: Sequence[Phase]) -> str:
    lengths = {phase.name: phase.setting("train_data", "row_tokens") for phase in phases}
    known = {name: length for name, length in lengths.items() if isinstance(length, int)}
    if len(set(known.values())) <= 1:
        return "".join(f"A row has {length:,} token slots." for length in set(known.values()))
    each = summary.listed([f"{length:,} in {name}" for name, length in known.items()])
    return f"Token slots of a row: {each}."


def _waits(phases: Sequence[Phase]) -> str:
    shares = np.concatenate([plots.wait_shares(phase) for phase in phases])
    shares = shares[np.isfinite(shares)]
    most = f" The longest wait took {shares.max():.0%} of its step." if shares.size else ""
    return f"Dashed: the 1% it should stay below.{most}"


def _mixture(phases: Sequence[Phase]) -> str:
    names = source_names(phases)
    parts = []
    for phase in phases:
        tokens, wanted, epochs = phase.source_tokens(), phase.wanted_shares(), phase.epochs_read()
        total = math.fsum(tokens.values())
        if not total > 0:
            continue
        lines = []
        for number, name in enumerate(names):
            share, aim = tokens.get(name, 0.0) / total, wanted.get(name)
            if not share and not aim:
                continue
            mark = f'<b style="left:{100 * aim:.2f}%"></b>' if aim is not None else ""
            cells = [
                f'<div class="bar"><i style="width:{100 * share:.2f}%; '
                f'background:var(--source-{number % HUES})"></i>{mark}</div>',
                f"{share:.1%}",
                f"{aim:.1%}" if aim is not None else NOTHING,
                short_number(tokens.get(name, 0.0)),
                _epochs(epochs.get(name, math.nan), phase.source_epochs().get(name)),
            ]
            row = "".join(f"<td>{cell}</td>" for cell in cells)
            lines.append(f'<tr><th scope="row">{escape(name)}</th>{row}</tr>\n')
        parts.append(
            f'<div class="scroll saved"><table class="mixture"><thead><tr>'
            f"<th>{escape(phase.name)}</th>"
            "<td></td><th>share</th><th>wanted</th><th>tokens</th><th>epochs</th></tr></thead>\n"
            f"<tbody>{''.join(lines)}</tbody></table>{save_button('sources.csv')}</div>"
        )
    if not parts:
        return ""
    caption = "Bars: what was trained on. Marks: the share that the weights ask for."
    return f'<h2>Sources</h2>\n<p class="caption">{caption}</p>\n' + "\n".join(parts)


def _epochs(read: float, furthest: int | None) -> str:
    """How often a source was read; of an older record, at most how often."""
    if math.isfinite(read):
        return f"{read:.2f}" if read < 100 else short_number(read)
    return NOTHING if furthest is None else f"under {furthest + 1}"


def _settings(phases: Sequence[Phase]) -> str:
    parts = [
        f"<details><summary>{escape(phase.name)}</summary>"
        f"<pre>{escape(phase.config_text.strip())}</pre></details>"
        for phase in phases
        if phase.config_text.strip()
    ]
    return "<h2>Resolved configurations</h2>\n" + "\n".join(parts) if parts else ""
