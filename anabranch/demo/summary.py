"""What a run means, in figures for scripts (`summary`) and in words for the terminal (`print_summary`)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anabranch.demo.broker import HOST
from anabranch.demo.folder import FLEET, device_of
from anabranch.demo.outcome import FLOAT32, LAST, Outcome
from anabranch.demo.processes import Usage
from fl_protocol.topics import Kind, build


def watch_commands(port: int) -> list[tuple[str, str]]:
    """What to type to watch the fleet while it runs, as (what it shows, command)."""
    topics = (
        ("the task: version, accuracy, buffer", build(Kind.STATUS, FLEET, task="+")),
        ("one line a release", build(Kind.METRICS, FLEET, task="+")),
        ("every device's state, last wills included", build(Kind.STATE, FLEET, device="+")),
        ("verdicts on updates", build(Kind.RESULT, FLEET, device="+")),
        ("the int8 models at work", build(Kind.PREDICTION, FLEET, device="+")),
    )
    return [(what, f"mosquitto_sub -h {HOST} -p {port} -v -t '{topic}'") for what, topic in topics]


def summary(outcome: Outcome) -> dict[str, Any]:
    """All figures as plain values, for `summary.json` and `--json`. Accuracies are shares, 0..1."""
    o, against = outcome, outcome.comparison
    agents = agent_usage(o)
    differ = [r.version for r in o.replayed if not r.same]
    return {
        "ok": o.agreement.agree and not differ and not o.problems,
        "seed": o.seed,
        "devices": len(o.speeds),
        "broker": {"name": o.broker.name, "host": HOST, "port": o.broker.port, "cost": o.broker.cost},
        "fleet": FLEET,
        "seconds": {**o.seconds, "total": round(sum(o.seconds.values()), 1)},
        "cast": asdict(o.cast),
        "happenings": [asdict(h) for h in o.happenings],
        "problems": list(o.problems),
        "versions": o.releases[-1].version,
        "why": o.why,
        "plan": {"buffer": o.plan.buffer, "local_epochs": o.plan.local_epochs, "codec": o.plan.codec},
        "updates": {
            "all": len(o.updates),
            "verdicts": Counter(u.verdict for u in o.updates),
            "disposals": Counter(u.disposal for u in o.updates if u.disposal),
            "by_device": Counter(u.device for u in o.updates if u.disposal == "counted"),
        },
        "staleness": {"mean": mean_staleness(o), "most": max(o.staleness, default=0), "histogram": o.staleness},
        "accuracy": {
            "what": f"int8, test split, mean over fans; federated: mean of the last {LAST} releases",
            "federated": o.federated_mean,
            "federated_float": o.float_accuracy,
            "pooled": against.pooled_mean,
            "alone": against.alone_mean,
            "alone_on_own_fan": against.alone_own_mean,
            "validation": o.releases[-1].validation,
            "points_above_alone": points(o.federated_mean - against.alone_mean),
            "points_below_pooled": points(against.pooled_mean - o.federated_mean),
            "points_int8_below_float": points(o.float_accuracy - o.federated_mean),
            "by_fan": {
                device_of(speed): {
                    "federated": o.federated(speed),
                    "pooled": against.pooled[speed],
                    "alone_here": against.alone[speed][speed],
                    "alone_on_all": fmean(against.alone[speed].values()),
                }
                for speed in o.speeds
            },
            "by_version": {r.version: r.accuracy for r in o.releases},
        },
        "steps": {"federated": o.steps, "pooled": against.pooled_steps, "alone": against.alone_steps},
        "comparison": against.source,
        "bytes": {
            "updates": o.update_bytes,
            "updates_float32": o.update_bytes_float32,
            "up": sum(d.bytes_up for d in o.devices.values()),
            "down": sum(d.bytes_down for d in o.devices.values()),
            "down_float32": down_float32(o),
        },
        "agent": {
            "peak_mb": max((u.peak_mb for u in agents), default=None),
            "cpu_s_median": median(u.cpu_s for u in agents) if agents else None,
            "cpu_s_an_update": cpu_an_update(o),
        },
        "gateway": asdict(o.usage["gateway"]) if "gateway" in o.usage else None,
        "ledgers": {**asdict(o.agreement), "agree": o.agreement.agree},
        "replay": {"releases": len(o.replayed), "differ": differ},
        "model": {name: str(path) for name, path in o.model.items()},
        "watch": [command for _, command in watch_commands(o.broker.port)],
    }


def print_summary(console: Console, outcome: Outcome) -> None:
    """The end of the demo, for a person."""
    o = outcome
    console.print(_accuracy_table(o))
    for line in (verdict_line(o), "", *_facts(o)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print("\nto watch a fleet while it runs, in another terminal:", highlight=False)
    for what, command in watch_commands(o.broker.port):
        console.print(f"  {command}   # {what}", highlight=False, markup=False, soft_wrap=True)


def verdict_line(o: Outcome) -> str:
    """The three comparisons in a sentence."""
    above = points(o.federated_mean - o.comparison.alone_mean)
    below = points(o.comparison.pooled_mean - o.federated_mean)
    lost = points(o.float_accuracy - o.federated_mean)
    return (
        f"[bold]federated int8 {o.federated_mean:.1%}[/]: {above:.1f} points above models trained alone, "
        f"{_compared(below, 'pooled training')}, {_compared(lost, 'its float version')}"
    )


def points(share: float) -> float:
    """A difference of accuracies in points."""
    return round(100 * share, 2)


def mean_staleness(o: Outcome) -> float:
    """Versions that went by, on average, between an update's base and the release that counted it."""
    counts = o.staleness
    return round(sum(tau * n for tau, n in counts.items()) / max(1, counts.total()), 2)


def agent_usage(o: Outcome) -> Sequence[Usage]:
    """What each agent used."""
    return [o.usage[device] for device in map(device_of, o.speeds) if device in o.usage]


def cpu_an_update(o: Outcome) -> float | None:
    """Processor seconds an agent spent for one update, start-up and everything else included."""
    agents = agent_usage(o)
    return round(sum(u.cpu_s for u in agents) / max(1, len(o.updates)), 3) if agents else None


def down_float32(o: Outcome) -> int:
    """Every version to every device, as float32 with nothing around it."""
    return o.releases[-1].version * len(o.speeds) * o.num_values * FLOAT32


def _compared(points_below: float, what: str) -> str:
    if abs(points_below) < 0.05:
        return f"level with {what}"
    return f"{abs(points_below):.1f} points {'below' if points_below > 0 else 'above'} {what}"


def _accuracy_table(o: Outcome) -> Table:
    table = Table(
        title=f"Accuracy of int8 models, last 15 s of each recording (federated: mean of the last {LAST} versions)",
        title_justify="left",
        title_style="bold",
    )
    for name in ("fan", "part"):
        table.add_column(name)
    for name in ("federated", "pooled", "alone, on its own fan", "alone, on all fans"):
        table.add_column(name, justify="right")
    against = o.comparison
    for speed in o.speeds:
        alone = against.alone[speed]
        shares = (o.federated(speed), against.pooled[speed], alone[speed], fmean(alone.values()))
        table.add_row(device_of(speed), o.cast.part(device_of(speed)), *(_share(share) for share in shares))
    table.add_section()
    means = (o.federated_mean, against.pooled_mean, against.alone_own_mean, against.alone_mean)
    table.add_row("all", "", *(_share(share) for share in means), style="bold")
    return table


def _share(share: float) -> Text:
    style = "green" if share >= 0.9 else "yellow" if share >= 0.7 else "red"
    return Text(f"{share:.1%}", style=style)


def _facts(o: Outcome) -> list[str]:
    f = summary(o)
    verdicts = ", ".join(f"{n} {v}" for v, n in sorted(f["updates"]["verdicts"].items()))
    disposals = ", ".join(f"{n} {d}" for d, n in sorted(f["updates"]["disposals"].items()))
    size = f["bytes"]
    wrong = f["replay"]["differ"]
    agent, gateway = f["agent"], f["gateway"]
    facts = {
        "versions": f"{f['versions']} in {o.seconds['training']:.0f} s ({o.why}); all in all {f['seconds']['total']} s",
        "updates": f"{f['updates']['all']}: {verdicts}; of the accepted, {disposals}",
        "staleness": f"{f['staleness']['mean']} versions on average, {f['staleness']['most']} at the most",
        "bytes up": f"{megabytes(size['updates'])} of updates, {size['updates_float32'] / max(1, size['updates']):.1f} "
        f"times less than as float32 ({megabytes(size['updates_float32'])}); {megabytes(size['up'])} at the sockets",
        "bytes down": f"{megabytes(size['down'])} at the sockets; every version to every device is "
        f"{megabytes(size['down_float32'])} as float32",
        "an agent": "not measured here"
        if agent["peak_mb"] is None
        else f"{agent['peak_mb']:.0f} MB at its peak (VmHWM), {agent['cpu_s_median']:.1f} s of processor, "
        f"{agent['cpu_s_an_update'] * 1000:.0f} ms an update with all that is around it",
        "the gateway": "not measured here"
        if gateway is None
        else f"{gateway['peak_mb']:.0f} MB at its peak, {gateway['cpu_s']:.1f} s of processor",
        "compared": f"{o.comparison.source}; {o.steps} steps federated, {o.comparison.pooled_steps} pooled, "
        f"{o.comparison.alone_steps} alone",
        "ledgers": str(o.agreement),
        "replay": f"RELEASES DIFFER: {wrong}" if wrong else f"{len(o.replayed)} releases made again, bit for bit",
        "model": ", ".join(f"{path} ({path.stat().st_size / 1000:.0f} kB)" for path in list(o.model.values())[:2]),
        "report": str(o.folder.path / "report.html"),
    }
    facts |= {"PROBLEMS": "; ".join(o.problems)} if o.problems else {}
    return [f"[bold]{name:<12}[/] {text}" for name, text in facts.items()]


def megabytes(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1000:.1f} kB"
