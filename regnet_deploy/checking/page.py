"""The check of a folder as one self-contained HTML page: findings with their images, figures, and contact sheets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import TypeVar

from regnet_deploy.checking.folder_check import FolderCheck
from regnet_deploy.checking.thumbnails import thumbnails
from regnet_deploy.html import Section, html_document, section_html
from regnet_deploy.images.dataset_summary import left_out_lines
from regnet_deploy.images.findings import Example, Finding
from regnet_deploy.images.split_listing import NO_CLASS
from regnet_deploy.progress import NoProgress, Progress

T = TypeVar("T")

#: Cases of a finding that the page shows, evenly from all.
_CASES = 24
#: Pictures on all contact sheets together; least and most on one. With more classes than have room for the least, some
#: classes, evenly from all, have a sheet.
_PICTURES, _FEWEST, _MOST = 2400, 4, 24
#: With more classes the contact sheets are closed.
_OPEN_SHEETS = 12

_STYLE = """
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; }
a { color: var(--accent); }
a:focus-visible, summary:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
summary { cursor: pointer; padding: .15rem 0; overflow-wrap: anywhere; }
article { border-top: 1px solid var(--line); padding: .7rem 0; }
article p { margin: 0 0 .3rem; overflow-wrap: anywhere; }
article p + p { color: var(--soft); }
.badge { border: 1px solid currentColor; border-radius: 4px; padding: 0 .4rem; margin-right: .5rem; font-size: .8rem;
  font-weight: 600; color: var(--soft); }
.serious .badge { color: var(--paper); background: var(--serious); border-color: var(--serious); }
:root { --serious: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --serious: #ff8a80; } }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.2rem, 1fr)); gap: .6rem; margin: .6rem 0 0;
  padding: 0; list-style: none; font-size: .75rem; color: var(--soft); }
.pairs { grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); }
.sheet li { overflow-wrap: anywhere; line-height: 1.3; min-width: 0; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; }
.sheet img, .sheet .gone { display: block; width: 100%; height: 6.2rem; object-fit: contain; background: var(--page);
  border: 1px solid var(--line); border-radius: 4px; }
.bar { display: block; height: .55rem; min-width: 2px; background: var(--accent); border-radius: 2px; }
td:has(.bar) { vertical-align: middle; }
@media (min-width: 57.1rem) { td:has(.bar) { width: 30%; } }
"""


def check_page(check: FolderCheck, progress: Progress = NoProgress()) -> str:
    """Return the HTML page of a check. The images that it shows are opened once more, for their small pictures.

    Args:
        check: of a folder.
        progress: receives the pictures drawn.
    """
    sheets = _sheets(check)
    cases = [name for finding in check.findings for each in _evenly(finding.examples, _CASES) for name in each.names]
    shown = {name for classes in sheets.values() for names in classes for name in names}
    pictures = thumbnails(check.listing.source, shown | set(cases), progress)
    body = (
        _contents(check)
        + _findings(check, pictures)
        + section_html(Section("Figures", check.summary()))
        + _classes(check, sheets)
        + _contact_sheets(check, sheets, pictures)
        + _left_out(check)
    )
    name = check.listing.source.root.name
    return html_document(f"{name} - check of images", name, headline(check), body, _STYLE)


def headline(check: FolderCheck) -> str:
    """Return one line: how many images and classes there are, and how many findings."""
    classes = {label for own in check.listing.splits.values() for label in own if label != NO_CLASS}
    others = len(check.findings) - check.serious
    found = f"{check.serious:,} serious finding{'s' * (check.serious != 1)}, {others:,} to look at"
    return f"{len(check.usable):,} usable images of {len(check.checked):,} files, {len(classes):,} classes: {found}"


def _contents(check: FolderCheck) -> str:
    links = [("findings", "Findings"), ("classes", "Classes"), ("sheets", "Contact sheets")]
    links += [("left-out", "Left out")] if check.listing.left_out or check.listing.notes else []
    listed = "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in links)
    return f"<nav>{listed}</nav>"


def _findings(check: FolderCheck, pictures: Mapping[str, str]) -> str:
    found = "".join(_finding(finding, pictures) for finding in check.findings)
    return f'<section id="findings"><h2>Findings</h2>{found or "<p>Nothing was found.</p>"}</section>'


def _finding(finding: Finding, pictures: Mapping[str, str]) -> str:
    badge = "serious" if finding.serious else "look"
    cases = ""
    if finding.examples:
        count, shown = len(finding.examples), _evenly(finding.examples, _CASES)
        which = f"{len(shown)} of {count:,} cases" if count > len(shown) else "cases" if count > 1 else "case"
        pairs = any(len(each.names) > 1 for each in shown)
        items = "".join(f"<li>{_case(each, pictures)}</li>" for each in shown)
        cases = (
            f"<details{' open' * finding.serious}><summary>{which}</summary>"
            f'<ul class="sheet{" pairs" * pairs}">{items}</ul></details>'
        )
    return (
        f'<article class="{badge}"><p><span class="badge">{badge}</span>{escape(_sentence(finding.text))}</p>'
        f"<p>{_with_code(escape(_sentence(finding.advice)))}</p>{cases}</article>"
    )


def _case(case: Example, pictures: Mapping[str, str]) -> str:
    note = f"<br>{escape(case.note)}" if case.note else ""
    if not any(name in pictures for name in case.names):
        return f"{'<br>'.join(map(escape, case.names))}{note}"
    shown = "".join(_picture(name, pictures) for name in case.names)
    two = f'<div class="two">{shown}</div>' if len(case.names) > 1 else shown
    return f"{two}{'<br>'.join(map(escape, case.names))}{note}"


def _picture(name: str, pictures: Mapping[str, str]) -> str:
    if name not in pictures:
        return '<span class="gone"></span>'
    return f'<img src="{pictures[name]}" alt="{escape(name, quote=True)}">'


def _classes(check: FolderCheck, sheets: Mapping[str, object]) -> str:
    """Return the table of classes, with a bar for the training images of each, and a link to its contact sheet."""
    counts = {split: check.counts(split) for split in check.listing.splits}
    labels = [label for label in _labels(check) if label != NO_CLASS]
    largest = max(counts["train"].values(), default=0) or 1
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in ("class", *counts, ""))
    rows = []
    for number, label in enumerate(labels):
        cells = "".join(
            f'<td data-name="{split}">{own[label]:,}</td>' if label in own else f'<td data-name="{split}">-</td>'
            for split, own in counts.items()
        )
        width = 100 * counts["train"].get(label, 0) / largest
        bar = f'<td data-name=""><span class="bar" style="width:{width:.1f}%"></span></td>'
        name = f'<a href="#class-{number}">{escape(label)}</a>' if label in sheets else escape(label)
        rows.append(f'<tr><td data-name="class">{name}</td>{cells}{bar}</tr>')
    return (
        '<section id="classes"><h2>Classes, usable images</h2><div class="scroll"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _sheets(check: FolderCheck) -> dict[str, list[list[str]]]:
    """Return class -> for each split, names of the images on its contact sheet, evenly from all."""
    splits = check.listing.splits
    labels = _labels(check)
    room = min(_MOST, max(_FEWEST, _PICTURES // max(1, len(labels))))
    sheets = {}
    for label in _evenly(labels, _PICTURES // _FEWEST):
        of_splits = [
            [name for name in classes.get(label, ()) if not check.checked[name].reason] for classes in splits.values()
        ]
        total = sum(map(len, of_splits)) or 1
        sheets[label] = [_evenly(names, -(-room * len(names) // total)) for names in of_splits]
    return sheets


def _labels(check: FolderCheck) -> list[str]:
    return sorted({label for classes in check.listing.splits.values() for label in classes})


def _evenly(items: Sequence[T], count: int) -> list[T]:
    if len(items) <= count:
        return list(items)
    return [items[i * len(items) // count] for i in range(count)]


def _contact_sheets(
    check: FolderCheck, sheets: Mapping[str, Sequence[Sequence[str]]], pictures: Mapping[str, str]
) -> str:
    totals: Counter[str] = Counter()
    for split in check.listing.splits:
        totals.update(check.counts(split))
    drawn = []
    labels = [label for label in _labels(check) if label != NO_CLASS]
    numbers = {label: number for number, label in enumerate(labels)}
    for label, of_splits in sheets.items():
        names = [name for own in of_splits for name in own if name in pictures]
        items = "".join(f"<li>{_picture(name, pictures)}{escape(name)}</li>" for name in names)
        anchor = f' id="class-{numbers[label]}"' if label in numbers else ""  # inside, so that a link opens it
        title = (
            f"{label if label != NO_CLASS else 'images without a class'}: {len(names):,} of {totals[label]:,} images"
        )
        drawn.append(
            f"<details{' open' * (len(sheets) <= _OPEN_SHEETS)}><summary>{escape(title)}</summary>"
            f'<ul class="sheet"{anchor}>{items}</ul></details>'
        )
    some = "" if len(sheets) >= len(labels) else f"<p>Of {len(sheets):,} of {len(labels):,} classes.</p>"
    return f'<section id="sheets"><h2>Contact sheets</h2>{some}{"".join(drawn)}</section>'


def _left_out(check: FolderCheck) -> str:
    lines = [*check.listing.notes, *left_out_lines("not read", check.listing.left_out)]
    if not lines:
        return ""
    items = "".join(f"<p>{escape(line)}</p>" for line in lines)
    return f'<section id="left-out"><h2>Left out</h2>{items}</section>'


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _with_code(html: str) -> str:
    """Mark what is between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
