"""What attackers do to a federation, rule by rule: accuracy on real data, asynchronous, with stragglers, compressed.

Every cell is the accuracy of a run under attack minus that of the plain mean without one (the first row), paired by
seed, in points: mean ± half of a 95 % interval. A run's accuracy is the mean over its last ten versions on the test
set. Bases are benchmarks/experiments/robust/*.toml; the codec is the default. A robust rule is told the share of
attackers that there is, and computes its f from it. Runs stay in --folder, and one that is there is not run again.

Rules and settings were compared on validation with seeds from 100 on (--tune); without it the test set measures.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bytes_models import bundle_of
from bytes_training import Runs, accuracy, inline, run_missing, shown, variant, write_experiment
from figures import parse_arguments, print_result, setting
from pages import as_text, write_page

from anabranch.simulator.compare import Estimate, estimate
from anabranch.simulator.results import Run

EXPERIMENTS = Path(__file__).parent / "experiments" / "robust"
BASES = ("har_mlp_38k", "fashion_mlp_50k")
MEAN = "mean"
ROBUST = "robust"
# kind -> lines of [[attacks]]
ATTACKS: Mapping[str, Mapping[str, str]] = {
    "sign-flip": {"scale": "3.0"},
    "scaled": {"scale": "10.0"},
    "label-flip": {},
    "noise": {"scale": "3.0"},
    "alie": {},
    "ipm": {"scale": "0.6"},
    "min-max": {},
    "just-inside": {},
    "nan": {},
    "replay": {},
    "base-version": {},
    "flooding": {},
    "backdoor": {"scale": "5.0"},
}
SHARES = (0.2, 0.3)
TUNING_SEED = 100
PAGE = Path("docs/choosing-a-rule.md")


@dataclass(frozen=True)
class Case:
    """One rule under one attack by a share of the fleet; no attack: clean, with the share that the rule assumes."""

    base: str
    rule: str
    attack: str
    share: float

    @property
    def plan(self) -> dict[str, str]:
        """Lines of [plan]."""
        if self.rule == MEAN:
            return {}
        name, *more = self.rule.split(" ")  # "near+mean reach=1.5"
        settings = {"name": name, "attackers": f"{self.share:g}", **dict(word.split("=") for word in more)}
        return {"rule": inline(settings)}

    @property
    def attacks(self) -> str:
        """The section that makes a share of the fleet hostile."""
        if not self.attack:
            return ""
        lines = {"kind": f'"{self.attack}"', "share": f"{self.share:g}", **ATTACKS[self.attack]}
        return "\n[[attacks]]\n" + "".join(f"{key} = {value}\n" for key, value in lines.items())


@dataclass(frozen=True, kw_only=True)
class Trial(Runs):
    """A case with its file and seeds."""

    case: Case


def prepare(case: Case, seeds: Sequence[int], folder: Path, bundles: Path, tune: bool, updates: int | None) -> Trial:
    """The case's file, named by its content and its bundle's."""
    bundle = bundle_of(case.base, bundles).resolve()
    name = "-".join(filter(None, (case.base, case.rule, case.attack or "clean", f"{case.share:g}")))
    name = re.sub(r"[^a-z0-9._]+", "-", name)
    text = variant((EXPERIMENTS / f"{case.base}.toml").read_text("utf-8"), name[:64], case.plan, bundle, updates)
    if tune:
        text = text.replace('measured_on = "test"', 'measured_on = "validation"')
        if case.base.startswith("har"):  # three of the 21 people validate
            text = text.replace("devices = 21", "devices = 18").replace("buffer = 15", "buffer = 13")
    path = write_experiment(folder, name, text + case.attacks, bundle)
    return Trial(case=case, path=path, seeds=tuple(seeds))


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All that is asked for, the clean ones first."""
    for base in options.base:
        for rule in dict.fromkeys((MEAN, *options.rule)):
            for share in options.share:
                yield Case(base, rule, "", share if rule != MEAN else options.share[0])
        for attack in options.attack:
            for share in options.share:
                for rule in options.rule:
                    yield Case(base, rule, attack, share)


def table(base: str, trials: Mapping[Case, Trial], options: argparse.Namespace) -> list[list[object]]:
    """A row an attack, a column a rule and share."""
    columns = [(rule, share) for share in options.share for rule in options.rule]
    plain = [accuracy(run) for run in trials[Case(base, MEAN, "", options.share[0])].runs]
    rows: list[list[object]] = [[base, *(f"{rule}, {share:.0%}" for rule, share in columns)]]
    rows.append([f"none (plain mean: {shown(estimate(plain), 100)} %)"])
    for attack in ("", *options.attack):
        row = rows[-1] if not attack else [attack]
        for rule, share in columns:
            case = Case(base, rule, attack, options.share[0] if rule == MEAN and not attack else share)
            row.append(shown(loss(trials[case].runs, plain), 100))
        if attack:
            rows.append(row)
    return rows


def loss(runs: Sequence[Run], plain: Sequence[float]) -> Estimate | None:
    """What was lost against the plain mean without an attack, seed by seed."""
    return estimate([accuracy(run) - value for run, value in zip(runs, plain, strict=True)])


def backdoors(base: str, trials: Mapping[Case, Trial], options: argparse.Namespace) -> list[list[object]]:
    """How often the int8 model takes what bears the trigger for the target, under the attack."""
    columns = [(rule, share) for share in options.share for rule in options.rule]
    row: list[object] = [base]
    for rule, share in columns:
        found = [run.summary.backdoor_success for run in trials[Case(base, rule, "backdoor", share)].runs]
        row.append(shown(estimate([value for value in found if value is not None]), 100))
    return [["the backdoor's success, %", *(f"{rule}, {share:.0%}" for rule, share in columns)], row]


def slow_ones(base: str, trials: Mapping[Case, Trial], options: argparse.Namespace) -> list[list[object]]:
    """Of the updates of honest slow devices: how many came, were refused, and were accepted but left out by `near`."""
    rows: list[list[object]] = [["honest devices 15 and 40 times slower", "updates", "refused", "left out"]]
    for rule in options.rule:
        for what, hostile in (("without attackers", False), ("under all attacks", True)):
            chosen = [t for c, t in trials.items() if (c.base, c.rule, bool(c.attack)) == (base, rule, hostile)]
            slow = [d for t in chosen for run in t.runs for d in run.devices if d.slowness > 1 and not d.attack]
            came = sum(d.accepted + d.stale + d.rejected for d in slow)
            parts = (sum(d.stale + d.rejected for d in slow), sum(d.left_out for d in slow))
            rows.append([f"{base}, {rule}, {what}", came, *(f"{100 * part / max(1, came):.2f} %" for part in parts)])
    return rows


def plot(base: str, trials: Mapping[Case, Trial], options: argparse.Namespace, path: Path) -> None:
    """What each attack costs, at the largest share of attackers."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    share, height = max(options.share), 0.8 / len(options.rule)
    plain = [accuracy(run) for run in trials[Case(base, MEAN, "", options.share[0])].runs]
    figure, axis = plt.subplots(figsize=(8, 5))
    for place, rule in enumerate(options.rule):
        found = [loss(trials[Case(base, rule, attack, share)].runs, plain) for attack in options.attack]
        at = [row + (place - (len(options.rule) - 1) / 2) * height for row in range(len(options.attack))]
        values = [100 * f.mean if f else 0.0 for f in found]
        halves = [100 * (f.half_width or 0.0) if f else 0.0 for f in found]
        axis.barh(at, values, height, xerr=halves, label=rule, error_kw={"linewidth": 0.8})
    axis.set_yticks(range(len(options.attack)), options.attack)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_title(f"{base}, {share:.0%} hostile")
    axis.set_xlabel("points against the mean without attackers")
    axis.grid(axis="x", alpha=0.3)
    axis.invert_yaxis()
    axis.legend(loc="lower left")
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None})  # the same runs, the same bytes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", action="append", choices=BASES, help="again for more; all unless told")
    parser.add_argument("--rule", action="append", help=f"as in a plan; {MEAN} and {ROBUST} unless told")
    parser.add_argument("--attack", action="append", choices=tuple(ATTACKS), help="again for more; all unless told")
    parser.add_argument("--share", action="append", type=float, help="of hostile devices; 0.2 and 0.3 unless told")
    parser.add_argument("--seeds", type=int, default=5, help="the seeds 0, 1, ...")
    parser.add_argument("--tune", action="store_true", help=f"on validation, with seeds from {TUNING_SEED} on")
    parser.add_argument("--updates", type=int, help="of each run, in place of what the experiments say")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-robust"), help="of runs")
    parser.add_argument("--bundles", type=Path, default=Path("runs/bench-bytes"), help="of the models' bundles")
    parser.add_argument("--write", action="store_true", help="the tables and the plot into docs/choosing-a-rule.md")
    options = parse_arguments(parser)
    options.base = options.base or list(BASES)
    options.rule = options.rule or [MEAN, ROBUST]
    options.attack = options.attack or list(ATTACKS)
    options.share = options.share or list(SHARES)
    options.folder.mkdir(parents=True, exist_ok=True)
    first = TUNING_SEED if options.tune else 0
    seeds = list(range(first, first + options.seeds))
    trials = {
        case: prepare(case, seeds, options.folder, options.bundles, options.tune, options.updates)
        for case in cases(options)
    }
    run_missing(list(trials.values()), options.jobs, lambda line: print(line, file=sys.stderr, flush=True))
    said = setting("numpy", "onnxruntime")
    tables = {base: [table(base, trials, options)] for base in options.base}
    for base, found in tables.items():
        if "backdoor" in options.attack:
            found.append(backdoors(base, trials, options))
        found.append(slow_ones(base, trials, options))
    everything = [one for found in tables.values() for one in found]
    print_result({"setting": said, "tables": everything}, everything, options.json)
    if options.write:
        for base, found in tables.items():
            write_page(PAGE, {f"bench-robust-{base}": as_text(found, said)})
            plot(base, trials, options, PAGE.with_name(f"attacks-{base}.png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
