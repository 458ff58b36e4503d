"""`anabranch`: the command that a person types."""

import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import typer

from fl_protocol.errors import ConfigError, ProtocolError

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def anabranch() -> None:
    """Federated learning for fleets of edge devices, over MQTT."""


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, help="Draws who is slow, killed, late or leaves, and all training.")] = 0,
    devices: Annotated[int, typer.Option(help="How many of the 17 fans; fewer are a spread of speeds.")] = 17,
    minutes: Annotated[int, typer.Option(min=1, help="The training ends after these at the latest.")] = 2,
    versions: Annotated[int | None, typer.Option(min=5, help="The training ends after so many versions.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the run's folder: stores, keys, logs, examples.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Read the comparisons from a file; train none live.")] = False,
    kill_gateway: Annotated[bool, typer.Option("--kill-gateway", help="`kill -9` the gateway too, and go on.")] = False,
    output: Annotated[Path | None, typer.Option(help="The run's folder; runs/demo-TIME unless told.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON; progress goes to stderr.")
    ] = False,
) -> None:
    """Run a whole fleet on this machine: a broker, a gateway, 17 agents; and see what comes of it."""
    for package in ("matplotlib", "onnxruntime"):
        if find_spec(package) is None:
            raise ConfigError(f"{package} is not installed", 'the demo wants `pip install "anabranch[demo]"`')
    from anabranch.demo.command import demo_command
    from anabranch.demo.folder import VERSIONS
    from anabranch.demo.run import Options

    options = Options(
        seed=seed,
        devices=devices,
        minutes=minutes,
        versions=versions or VERSIONS,
        quick=quick,
        kill_gateway=kill_gateway,
        output=output or Path("runs") / time.strftime("demo-%Y%m%d-%H%M%S"),
    )
    raise typer.Exit(demo_command(options, keep=keep, as_json=as_json))


@app.command()
def simulate(
    experiment: Annotated[
        list[Path], typer.Argument(metavar="EXPERIMENT.toml", help="What to run; with --compare, folders of runs.")
    ],
    seed: Annotated[str, typer.Option("--seed", "--seeds", help="7, or 1,2,3, or 0:1000; else the file's.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Seeds run side by side, a process each.")] = 1,
    output: Annotated[Path | None, typer.Option(help="The results' folder; runs/NAME-TIME unless told.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Write trace.txt: everything that happened, to read.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Only hold the invariants; leave no folder.")] = False,
    cache: Annotated[Path | None, typer.Option(help="Keep training results here, and take them from here.")] = None,
    faults: Annotated[str | None, typer.Option(help="Keep these faults of the schedule only: 2,5, or none.")] = None,
    shrink: Annotated[bool, typer.Option("--shrink", help="Find a small part of a broken schedule.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="One table and one plot of runs that have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to stderr.")] = False,
) -> None:
    """Run the production code on a virtual clock: an experiment, under faults, with many seeds; or compare runs."""
    for package in ("matplotlib", "onnxruntime"):
        if find_spec(package) is None:
            raise ConfigError(f"{package} is not installed", 'the simulator wants `pip install "anabranch[demo]"`')
    from anabranch.simulator.command import Options, compare_command, simulate_command

    if compare:
        raise typer.Exit(compare_command(experiment, output, as_json=as_json))
    if len(experiment) != 1:
        raise ConfigError(f"{len(experiment)} experiments at once", "name one file; --compare takes many folders")
    options = Options(
        experiment=experiment[0],
        seeds=seed,
        jobs=jobs,
        output=output,
        trace=trace,
        faults=faults,
        shrink=shrink,
        check=check,
        cache=cache,
        as_json=as_json,
    )
    raise typer.Exit(simulate_command(options))


@app.command()
def doctor(
    broker: Annotated[
        str, typer.Option(help="mqtt://HOST[:PORT], or mqtts://HOST[:PORT] with TLS; user@ before HOST.")
    ],
    ca: Annotated[
        Path | None, typer.Option(help="The authority of the broker's certificate; the system's if none.")
    ] = None,
    cert: Annotated[Path | None, typer.Option(help="Our certificate, PEM. Not one that a running device uses.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    topic: Annotated[
        str | None, typer.Option(help="Below which topic to try; anabranch-doctor/USER unless told.")
    ] = None,
    queue: Annotated[int, typer.Option(min=10, max=100_000, help="Messages to try the queue with.")] = 3000,
    mqtt_version: Annotated[
        Literal["5", "3.1.1"] | None, typer.Option(help="Only this one; else what there is.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to stderr.")] = False,
) -> None:
    """Try out what a broker can do for a fleet: what works, what does not, what that means, and what to do.

    It clears away what it leaves. Ends with 1 where something fails. A password comes from ANABRANCH_BROKER__PASSWORD.
    """
    from anabranch.doctor.command import doctor_command

    raise typer.Exit(
        doctor_command(
            broker,
            ca=ca,
            certificate=cert,
            key=key,
            topic=topic,
            queue=queue,
            version=mqtt_version,
            as_json=as_json,
        )
    )


def main() -> None:
    """The command, with errors as one sentence and a hint."""
    try:
        app()
    except (ConfigError, ProtocolError) as error:
        typer.echo(f"anabranch: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
