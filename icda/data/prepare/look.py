"""What is found of a data set's parts and what is wrong with them, as a table and as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

from icda.data.base import Count, Sample, title
from icda.data.prepare.parts import Finding, Part

SHOWN_PATHS = 3
"""How many of the files that something is wrong with are named."""
SHOWN_GROUPS = 4
"""How many of the groups, such as cities, whose number is wrong are named."""
_GROUP = "images of "


@dataclass(frozen=True)
class Row:
    """A line of the table; see ``table``."""

    part: str
    data: str
    what: str
    found: str
    published: str
    state: str


def inspect(part: Part, published: bool) -> tuple[list[Row], list[Finding]]:
    """What is found of a part, and what is wrong with it.

    Args:
        part: The part.
        published: Whether counts are compared with the published ones.
    """
    if part.found is None:
        return _inspect_unopened(part)
    dataset = part.found
    images, *counts = dataset.counts()
    groups = [count for count in counts if count.what.startswith(_GROUP)]
    findings = _compare(part, images, groups) if published else []
    rows = [Row(part.name, dataset.name, images.what, f"{images.found}", *_published(images, published))]
    for count in counts:
        lacking = dataset.missing.get(count.companion, [])
        cells = _published(count, published)
        if count in groups:
            continue
        if lacking:
            cells = ("-", f"{len(lacking)} missing")
            findings.append(_lacking(part, count.companion, lacking))
        elif cells[1] != "ok":
            findings.append(Finding(part.name, f"{count.what}: {cells[1]} than published", stops=False))
        rows.append(Row("", "", count.what, f"{count.found}", *cells))
    if part.translations is not None and "translation" not in dataset.expected:
        rows.append(Row("", "", "translations", "0", "-", "not there"))
        text = f"no folder of night translations {part.translations}; only needed for cem=translated"
        findings.append(Finding(part.name, text, stops=False))
    findings += [Finding(part.name, remark, stops=False) for remark in _remarks(part)]
    if dataset.strays:
        count = len(dataset.strays)
        belongs = "1 file belongs" if count == 1 else f"{count} files belong"
        findings.append(Finding(part.name, f"{belongs} to no image; left aside", dataset.strays, stops=False))
    if part.error and not any(finding.stops for finding in findings):
        findings.append(Finding(part.name, part.error, stops=part.is_needed))
    return rows, findings


def _remarks(part: Part) -> list[str]:
    """How the samples that training takes were chosen and paired."""
    if part.used is None:
        return []
    pairing = getattr(part.used, "pairing", "")
    paired = any(sample.reference is not None for sample in part.used.samples)
    return [*part.used.remarks, *([f"day references: {pairing}"] if paired else [])]


def _inspect_unopened(part: Part) -> tuple[list[Row], list[Finding]]:
    state = "incomplete" if part.is_there else "not there"
    adapter = str(part.node.get("_target_", "")).rsplit(".", 1)[-1]
    row = Row(part.name, adapter, "images", "-", "-", state)
    if part.is_needed:
        return [row], [Finding(part.name, part.error)]
    reason = part.error if part.is_there else f"there is no folder {part.node.get('root')}"
    return [row], [Finding(part.name, f"{state}, only needed for {part.purpose}; {reason}", stops=False)]


def _published(count: Count, published: bool) -> tuple[str, str]:
    """The cells ``published`` and ``state`` of a count."""
    if not published or count.published is None:
        return "-", "ok"
    more = count.found - count.published
    return f"{count.published}", "ok" if not more else f"{-more} fewer" if more < 0 else f"{more} more"


def _compare(part: Part, images: Count, groups: Sequence[Count]) -> list[Finding]:
    """Differences to the published numbers of images, group by group where there are groups."""
    findings = []
    compared = [count for count in groups or [images] if count.published is not None]
    short = [count for count in compared if count.found < count.published]
    if short:
        missing = sum(count.published - count.found for count in short)
        findings.append(
            Finding(
                part.name,
                f"{missing} of {sum(count.published for count in compared)} published images are missing"
                f"{_by_group(short, groups)}; unzip the package again, or give dataset.published=false if you do "
                "without them",
                stops=part.is_needed,
            )
        )
    surplus = [count for count in compared if count.found > count.published]
    if surplus:
        more = sum(count.found - count.published for count in surplus)
        text = f"{more} images more than published{_by_group(surplus, groups)}; they are used like the others"
        findings.append(Finding(part.name, text, stops=False))
    return findings


def _by_group(counts: Sequence[Count], groups: Sequence[Count]) -> str:
    if not groups:
        return ""
    named = [f"{count.what.removeprefix(_GROUP)} has {count.found} of {count.published}" for count in counts]
    more = [f"and {len(named) - SHOWN_GROUPS} more"] if len(named) > SHOWN_GROUPS else []
    return f" ({', '.join(named[:SHOWN_GROUPS] + more)})"


def _lacking(part: Part, what: str, lacking: Sequence[Sample]) -> Finding:
    text = f"{len(lacking)} of {len(part.found)} images have no {title(what)}; expected {part.found.expected[what]}"
    paths = tuple(sample.image for sample in lacking)
    if what == "translation":
        return Finding(part.name, f"{text}; only needed for cem=translated", paths, stops=False)
    mend = "; unzip the package again" if part.found.published() else ""  # one's own footage has no package
    return Finding(part.name, f"{text}{mend}", paths, stops=part.is_needed)


def table(rows: Sequence[Row]) -> str:
    """Rows as aligned lines below a header; numbers to the right.

    Args:
        rows: The lines.
    """
    header = Row("part", "data set", "what", "found", "published", "state")
    cells = [astuple(row) for row in (header, *rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    cells.insert(1, tuple("-" * width for width in widths))
    right = (header.__match_args__.index("found"), header.__match_args__.index("published"))
    return "\n".join(
        "  ".join(
            text.rjust(width) if column in right else text.ljust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    )


def describe(findings: Sequence[Finding]) -> str:
    """Findings as lines, each with the first few of its files.

    Args:
        findings: What was found.
    """
    lines = []
    for finding in findings:
        lines.append(f"  {finding.part}: {finding.text}")
        lines += [f"    {path}" for path in finding.paths[:SHOWN_PATHS]]
        if len(finding.paths) > SHOWN_PATHS:
            lines.append(f"    ... and {len(finding.paths) - SHOWN_PATHS} more")
    return "\n".join(lines)
