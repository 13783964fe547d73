"""The shell of a self-contained page: its colours, its style, its head. Imports no matplotlib."""

import json
from collections.abc import Sequence
from html import escape

THEME = {
    "ink": ("#1c2127", "#e8eaed"),
    "muted": ("#5f6872", "#9ba5b0"),
    "grid": ("#e4e7eb", "#31373e"),
    "train": ("#4a525b", "#c3c9d0"),
    # Okabe and Ito's palette, told apart with any colour vision; lighter on a dark page.
    "source-0": ("#0072b2", "#4fa9e0"),
    "source-1": ("#d55e00", "#f28b45"),
    "source-2": ("#009e73", "#2fc79b"),
    "source-3": ("#b8609a", "#e09cc4"),
    "source-4": ("#c98a00", "#f0bc4a"),
    "source-5": ("#3f9bd1", "#8fd0f5"),
}
"""Colours by name: on a light page, on a dark page."""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --card: #f6f7f9; LIGHT }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2126; DARK } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 66rem; margin: 0 auto; padding: 1.6rem 1.1rem 4rem; }
h1 { font-size: 1.65rem; line-height: 1.25; margin: 0 0 .7rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: 0 0 .4rem; max-width: 44rem; }
.caption, .note { color: var(--muted); font-size: .86rem; line-height: 1.45; }
.note { border-left: 3px solid var(--source-1); padding-left: .7rem; }
.lead { display: grid; gap: .6rem 3rem; align-items: start; }
.scroll { overflow-x: auto; margin: .7rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--muted); font-weight: 500; }
thead { border-bottom: 1px solid var(--muted); }
tbody th { font-weight: 400; }
th { white-space: normal; overflow-wrap: anywhere; min-width: 3.2rem; }
tbody th { min-width: 5.6rem; }
tbody tr + tr:not(.inner) > * { border-top: 1px solid var(--grid); }
tr.inner > * { padding-top: 0; }
tr.inner > th { padding-left: 1rem; }
figure { margin: 0; min-width: 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
.wide { display: none; }
.grid { display: grid; gap: 2rem 2.2rem; margin-top: 2.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.bar { position: relative; height: .85rem; min-width: 2.2rem; background: var(--card); }
.bar > i { position: absolute; inset: 0 auto 0 0; }
.bar > b { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; background: var(--ink); }
.mixture { width: 100%; max-width: 46rem; font-size: .88rem; }
.mixture th, .mixture td { padding: .3rem .28rem; min-width: 0; overflow-wrap: normal; }
.mixture th:first-child { overflow-wrap: anywhere; min-width: 4.3rem; padding-left: 0; }
.mixture td:nth-child(2) { width: 45%; }
button { font: inherit; font-size: .72rem; line-height: 1; padding: .2rem .4rem; cursor: pointer;
  color: var(--muted); background: none; border: 1px solid var(--grid); border-radius: 3px; }
button:hover { color: var(--ink); border-color: var(--muted); }
h2 button, h3 button { float: right; margin-left: .5rem; font-weight: 400; }
.saved > button { margin-top: .2rem; }
@media print { button { display: none; } }
.machines th, .machines td { text-align: left; }
.machines td { white-space: normal; min-width: 4rem; }
.machines td:last-child { min-width: 13rem; }
details { border-top: 1px solid var(--grid); }
summary { cursor: pointer; padding: .55rem 0; }
pre { margin: 0 0 1rem; padding: .9rem 1rem; overflow-x: auto; background: var(--card);
  font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (min-width: 46rem) { .wide { display: block; } .narrow { display: none; } }
@media (min-width: 60rem) { .lead { grid-template-columns: minmax(18rem, 1fr) auto; } }
"""


_SAVE = """
const button = event.target.closest('button[data-save]');
if (!button) return;
const name = button.dataset.save, box = button.closest('.saved');
let text, type = 'text/csv';
if (name.endsWith('.svg')) {
  const all = [...box.querySelectorAll('svg')];
  const drawn = all.find(one => one.getBoundingClientRect().width) || all[0];
  const copy = drawn.cloneNode(true), light = LIGHT;
  copy.setAttribute('font-family', 'sans-serif');
  text = new XMLSerializer().serializeToString(copy)
    .replace(/var\\(--([a-z0-9-]+)\\)/g, (_, color) => light[color]);
  type = 'image/svg+xml';
} else {
  const quoted = cell => '"' + cell.innerText.trim().replaceAll('"', '""') + '"';
  const lines = [...box.querySelectorAll('tr')].map(row => [...row.cells].map(quoted).join(','));
  text = lines.join('\\n') + '\\n';
}
const saved = document.createElement('a');
saved.href = window.URL.createObjectURL(new Blob([text], {type}));
saved.download = name;
saved.click();
"""


def save_button(name: str) -> str:
    """A button that saves the picture (.svg) or table (.csv) around it, of the class `saved`."""
    kind = name.rpartition(".")[2].upper()
    return (
        f'<button type="button" data-save="{escape(name)}" title="{escape(name)}">{kind}</button>'
    )


def document(
    title: str, body: Sequence[str], style: str = "", *, refresh_seconds: int | None = None
) -> str:
    """A page that needs no other file.

    Args:
        title: escaped already.
        body: its parts, as HTML.
        style: more rules than every page has.
        refresh_seconds: after which a browser reads the page again.
    """
    light, dark = (
        " ".join(f"--{name}: {colors[shade]};" for name, colors in THEME.items())
        for shade in (0, 1)
    )
    colors = json.dumps({name: shades[0] for name, shades in THEME.items()})
    save = escape(" ".join(_SAVE.replace("LIGHT", colors).split()))
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">\n' * bool(refresh_seconds)
    rules = _STYLE.replace("LIGHT", light).replace("DARK", dark) + style
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{refresh}<title>{title}</title>\n<style>{rules}</style>\n</head>\n<body>\n"
        f'<main onclick="{save}">\n' + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )
