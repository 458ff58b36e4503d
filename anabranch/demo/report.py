"""`report.html`: one page that needs nothing else, for whoever was not there."""

import html
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from string import Template

from anabranch.demo import figures
from anabranch.demo.folder import device_of
from anabranch.demo.outcome import LAST, Outcome
from anabranch.demo.summary import agent_usage, mean_staleness, points, watch_commands

TEMPLATE = files("anabranch") / "data" / "demo_report.html"


def write_report(outcome: Outcome, path: Path) -> None:
    """Write the page of a run to `path`."""
    o = outcome
    page = Template(TEMPLATE.read_text("utf-8")).substitute(
        title=f"Anabranch demo: {len(o.speeds)} fans, seed {o.seed}",
        lead=_lead(o),
        tiles=_tiles(o),
        accuracy=figures.accuracy(o),
        participation=figures.participation(o),
        staleness=figures.staleness(o),
        traffic=figures.traffic(o),
        fans=_fans(o),
        events=_events(o),
        checks=_checks(o),
        commands="\n".join(html.escape(f"{command}   # {what}") for what, command in watch_commands(o.broker.port)),
        source=html.escape(o.comparison.source),
        last=str(LAST),
        budget=f"{o.steps} steps federated, {o.comparison.pooled_steps} pooled, {o.comparison.alone_steps} alone",
    )
    path.write_text(page, "utf-8")


def _lead(o: Outcome) -> str:
    above = points(o.federated_mean - o.comparison.alone_mean)
    below = points(o.comparison.pooled_mean - o.federated_mean)
    place = f"{abs(below):.1f} points {'below' if below >= 0 else 'above'}"
    return html.escape(
        f"{len(o.speeds)} agents, one cooler fan each, trained one int8 model over {o.broker.name}, sharing no sample. "
        f"It is {above:.0f} points above what a fan learns alone, {place} training on all data in one place."
    )


def _tiles(o: Outcome) -> str:
    agents = agent_usage(o)
    less = o.update_bytes_float32 / max(1, o.update_bytes)
    tiles = (
        (f"{o.federated_mean:.1%}", "federated, int8", "federated"),
        (f"{o.comparison.pooled_mean:.1%}", "pooled", "pooled"),
        (f"{o.comparison.alone_mean:.1%}", "alone, on all fans", "alone"),
        (f"{o.releases[-1].version}", f"versions in {o.seconds['training']:.0f} s", ""),
        (f"{len(o.updates)}", f"updates, staleness {mean_staleness(o):.1f}", ""),
        (f"{less:.0f}×", "fewer bytes up than float32", ""),
        (f"{max(u.peak_mb for u in agents):.0f} MB" if agents else "-", "an agent at its peak", ""),
    )
    return "".join(f'<div class="tile {kind}"><b>{value}</b><span>{text}</span></div>' for value, text, kind in tiles)


def _fans(o: Outcome) -> str:
    rows = []
    for speed in o.speeds:
        device, alone = device_of(speed), o.comparison.alone[speed]
        counted = sum(u.device == device and u.disposal == "counted" for u in o.updates)
        shares = (o.federated(speed), o.comparison.pooled[speed], alone[speed], fmean(alone.values()))
        cells = "".join(_cell(share) for share in shares)
        rows.append(f"<tr><td>{device}</td><td>{o.cast.part(device)}</td><td>{counted}</td>{cells}</tr>")
    means = (o.federated_mean, o.comparison.pooled_mean, o.comparison.alone_own_mean, o.comparison.alone_mean)
    total = sum(u.disposal == "counted" for u in o.updates)
    rows.append(f"<tr class='all'><td>all</td><td></td><td>{total}</td>{''.join(map(_cell, means))}</tr>")
    return "".join(rows)


def _cell(share: float) -> str:
    """A share on a ground from red (a third: chance) to green."""
    hue = 8 + 132 * max(0.0, min(1.0, (share - 1 / 3) * 1.5)) ** 1.5
    return f'<td style="background:hsl({hue:.0f} 55% 88%)">{share:.1%}</td>'


def _events(o: Outcome) -> str:
    return "".join(
        f"<li><time>{(h.ts - o.started_ts) / 1000:.1f} s</time> {html.escape(h.text)}</li>" for h in o.happenings
    )


def _checks(o: Outcome) -> str:
    differ = [r.version for r in o.replayed if not r.same]
    replay = f"releases differ: {differ}" if differ else f"{len(o.replayed)} releases made again, bit for bit"
    checks = [(o.agreement.agree, str(o.agreement)), (not differ, replay)]
    checks += [(False, problem) for problem in o.problems]
    return "".join(f'<li class="{"good" if good else "bad"}">{html.escape(text)}</li>' for good, text in checks)
