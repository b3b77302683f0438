"""The command line: `harness run`, `score`, `report`, `gate`, `verify`, `compare`, and lists of what there is.

Nothing heavy is imported before a command needs it, so that `harness --help` answers at once.
Exit status: 0 done; 1 done, but some cases failed; 2 the command cannot be carried out; 130 interrupted. Of `gate`:
0 passed; 1 a gate failed; 2 a gate was not measured or not decided, or the command cannot be carried out. Of `verify`:
1 files have changed.
"""

import contextlib
import math
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import __version__
from harness.errors import HarnessError

if TYPE_CHECKING:
    import pandas as pd

    from harness.judge import Judgement, Signed, Verdict
    from harness.policy import Policy
    from harness.store import RunFolder

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Evaluates image upscalers: quality, speed, noise robustness and bias per group.",
)
backends_app = typer.Typer(no_args_is_help=True, help="Lists, checks and serves backends.")
weights_app = typer.Typer(invoke_without_command=True, help="The pretrained weights that metrics and backends use.")
suites_app = typer.Typer(invoke_without_command=True, help="Lists and validates suites.")
app.add_typer(backends_app, name="backends")
app.add_typer(weights_app, name="weights")
app.add_typer(suites_app, name="suites")

CredentialsOption = Annotated[
    Path | None,
    typer.Option("--credentials", metavar="FILE", help="YAML: HOST:PORT -> ca, cert, key, token_file (all files)."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
JudgedOption = Annotated[str | None, typer.Option(help="Judge this one; by default every compared backend.")]
EvidenceOption = Annotated[Path | None, typer.Option(help="YAML: who says that checklist gates hold, and why.")]
WaiversOption = Annotated[Path | None, typer.Option(help="YAML: gates let go, by whom, why and until when.")]
POLICY_HELP = "A built-in name (see benchmarks/policies) or a YAML file"


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that the harness raises on purpose into one line and exit status 2."""
    try:
        yield
    except HarnessError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues where it stopped", err=True)
        raise typer.Exit(130) from None


def _version(value: bool) -> None:  # noqa: FBT001 - typer's callback
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[  # noqa: FBT002 - handled by its callback
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Evaluate image upscalers."""


@app.command()
def run(  # noqa: PLR0913, PLR0917 - the options of the command
    suite: Annotated[
        str, typer.Argument(metavar="SUITE", help="A built-in name (quick, faces, photos) or a YAML file.")
    ],
    dataset: Annotated[str | None, typer.Option(help="KIND:PATH[#SPLIT], or synthetic.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[@HOST:PORT[+HOST:PORT]...][,option=value]...; several addresses are replicas that share the "
            "work. 'A -> B' is a chain, 'NAME = A -> B' one with a name. Repeatable. Default: the suite's."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only so many images, stratified by group.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The run folder; by default the same command finds the same one.")
    ] = None,
    credentials: CredentialsOption = None,
) -> None:
    """Run a suite against backends, score the outputs and write the report; the same command continues."""
    with one_line_errors():
        from harness.errors import ConfigError
        from harness.plan import Job
        from harness.runner import default_output, new_progress
        from harness.runner import run as run_job
        from harness.suite import load_suite

        chosen = load_suite(suite)
        spec = dataset or chosen.dataset
        if spec is None:
            raise ConfigError(f"suite {chosen.name} needs a dataset: give --dataset KIND:PATH[#SPLIT]")
        folder = output or default_output(chosen, spec, backend or (), limit)
        command = shlex.join(["harness", *sys.argv[1:]])
        job = Job(chosen, spec, tuple(backend or ()), folder, limit, command, credentials)
        with new_progress() as progress:
            result = run_job(job, progress)
        with result.locked():
            failed = _finish(result)
    raise typer.Exit(int(failed))


@app.command()
def score(run_folder: RunArgument) -> None:
    """Score the stored outputs of a run again and derive its tables, without any backend."""
    with one_line_errors():
        from harness.measure import measure
        from harness.runner import new_progress
        from harness.store import open_run

        folder = open_run(run_folder)
        with folder.locked():
            with new_progress() as progress:
                measure(folder, progress)
            failed = _finish(folder)
    raise typer.Exit(int(failed))


@app.command()
def report(
    run_folder: RunArgument,
    policy: Annotated[
        str | None, typer.Option(help=f"{POLICY_HELP}: the verdict opens the report, documents/ goes with it.")
    ] = None,
    backend: JudgedOption = None,
    evidence: EvidenceOption = None,
    waivers: WaiversOption = None,
) -> None:
    """Derive the tables of a run and write its report; with a policy, the verdict first, model cards and a test log."""
    with one_line_errors():
        from harness.errors import ConfigError
        from harness.store import open_run

        folder = open_run(run_folder)
        if not policy and (backend or evidence or waivers):
            raise ConfigError("--backend, --evidence and --waivers are for a verdict; give a --policy")
        judging = _judging(folder, policy, backend, evidence=evidence, waivers=waivers) if policy else None
        with folder.locked():
            failed = _finish(folder, judging)
    raise typer.Exit(int(failed))


@app.command()
def verify(run_folder: RunArgument) -> None:
    """Check the files of a run against the SHA-256 of its test log: exit status 0 as signed, 1 changed, 2 no log."""
    with one_line_errors():
        from harness.store import open_run
        from reports.log import changes, read_log

        folder = open_run(run_folder).path
        log = read_log(folder)
        changed = changes(folder, log)
        for line in changed:
            typer.echo(line)
        if not changed:
            typer.echo(f"{len(log.files)} files are as in the test log of {log.dated}")
    raise typer.Exit(int(bool(changed)))


@app.command()
def gate(  # noqa: PLR0913, PLR0917 - the options of the command
    run_folder: RunArgument,
    policy: Annotated[str, typer.Option(help=f"{POLICY_HELP}.")],
    backend: JudgedOption = None,
    evidence: EvidenceOption = None,
    waivers: WaiversOption = None,
    junit: Annotated[Path | None, typer.Option(help="Write the verdicts as JUnit XML.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the verdicts as JSON.")] = None,
) -> None:
    """Judge the backends of a run by a policy: exit status 0 passed, 1 failed, 2 not measured or not decided."""
    with one_line_errors():
        from harness.judge import exit_status
        from harness.store import open_run, write_atomic
        from reports.verdict import data
        from reports.verdict import junit as xml

        folder = open_run(run_folder)
        judgement = _judging(folder, policy, backend, evidence=evidence, waivers=waivers)()
        for path, text in ((junit, xml(judgement)), (json_file, data(folder.read_record() or {}, judgement))):
            if path:
                write_atomic(path, text.encode())
        for verdict in judgement.verdicts:
            _print_verdict(verdict, judgement.policy)
    raise typer.Exit(exit_status(judgement.verdicts))


def _judging(
    folder: "RunFolder", policy: str, backend: str | None, *, evidence: Path | None, waivers: Path | None
) -> "Callable[[], Judgement]":
    """The judging of a run, to be called when its tables are there; what was asked for is checked at once."""
    from functools import partial

    from harness.judge import compared, judge_all
    from harness.policy import load_policy

    rules = load_policy(policy)
    labels = [backend] if backend else compared(folder.read_record() or {"backends": []})
    return partial(judge_all, folder, rules, labels, _signed(rules, labels, evidence, waivers))


def _signed(policy: "Policy", labels: list[str], evidence: Path | None, waivers: Path | None) -> "Signed":
    """What persons say, which is of one backend."""
    from harness.errors import ConfigError
    from harness.judge import Signed
    from harness.policy import load_evidence, load_waivers

    if not labels:
        raise ConfigError("the run compares no backend; name a control arm with --backend to judge it")
    if (evidence or waivers) and len(labels) > 1:
        raise ConfigError("--evidence and --waivers are of one backend; say which with --backend")
    return Signed(
        load_evidence(evidence, policy) if evidence else {},
        load_waivers(waivers, policy) if waivers else {},
    )


def _print_verdict(verdict: "Verdict", policy: "Policy") -> None:
    """The verdict, its sections, and the gates from the worst to the best."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.judge import STATUSES
    from reports.verdict import figure

    sections = ", ".join(f"{s.section.name} {s.status}" for s in verdict.sections)
    table = Table(title=Text(f"{verdict.label}, {policy.name}: {verdict.status.upper()} ({sections})"))
    for heading in ("gate", "status", "figure", "wanted", "note"):
        table.add_column(heading, no_wrap=heading == "gate")
    for f in sorted(verdict.findings, key=lambda f: (not f.decides, STATUSES.index(f.status))):
        status = f.status if f.decides else f"{f.status} (warning only)"
        table.add_row(*map(Text, (f.gate.id, status, figure(f), f.gate.limit, f.note)))
    Console(width=max(110, Console().width)).print(table)


@app.command()
def compare(
    candidate: Annotated[Path, typer.Argument(metavar="CANDIDATE", help="A run folder.")],
    baseline: Annotated[Path | None, typer.Argument(metavar="BASELINE", help="A run folder to compare with.")] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(help="Of two runs: the backend, by default each. Of one run: give two, candidate and baseline."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
) -> None:
    """Compare two runs, or two backends of one, on the same images: paired differences, regressions first."""
    with one_line_errors():
        from harness.compare import compare_backends, compare_runs
        from harness.errors import ConfigError
        from harness.spreadsheet import to_csv
        from harness.store import open_run, write_atomic

        labels = backend or []
        if len(labels) > 1 if baseline else len(labels) != 2:
            raise ConfigError("give two run folders and one --backend at most, or one run folder and two --backend")
        folder = open_run(candidate)
        if baseline:
            table = compare_runs(folder, open_run(baseline), labels[0] if labels else None)
        else:
            table = compare_backends(folder, *labels)
        if output:
            write_atomic(output, to_csv(table).encode())
        _print_comparison(table)


def _print_comparison(differences: "pd.DataFrame") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.errors import one_line

    table = Table(title="Candidate minus baseline, same images: mean [95 % interval]")
    for heading in ("verdict", "candidate", "baseline", "metric", "condition", "n", "difference"):
        table.add_column(heading)
    for row in differences.to_dict("records"):
        condition = f"{row['condition']} {row['severity']}" if row["severity"] else row["condition"]
        n = f"{row['n']} ({row['unpaired']} unpaired)" if row["unpaired"] else str(row["n"])
        what = (row["verdict"], row["candidate"], row["baseline"], row["metric"], condition, n)
        table.add_row(
            *map(Text, (*map(one_line, what), _cell(row["mean"], row["low"], row["high"]).replace("\n", " ")))
        )
    Console(width=max(110, Console().width)).print(table)


def _finish(folder: "RunFolder", judging: "Callable[[], Judgement] | None" = None) -> bool:
    from harness.audit import write_tables
    from reports.build import build

    tables = write_tables(folder)
    judgement = judging() if judging else None
    files = build(folder.path, judgement)
    if len(tables["summary"]):
        _print_summary(tables)
    for verdict in judgement.verdicts if judgement else ():
        typer.echo(f"verdict: {verdict.label}: {verdict.status}")
    failures = tables["failures"]
    if "valid" in tables["speed"] and not tables["speed"]["valid"].all():
        typer.echo("note: other programs were running during the timed pass; its figures are marked invalid", err=True)
    for row in failures.head(10).to_dict("records"):
        where = f"{row['backend'] or 'dataset'}, {row['condition']}"
        typer.echo(f"failed: {where}: {row['n']} x {row['kind']}: {row['message']}", err=True)
    html = next(f for f in files if f.suffix == ".html")
    typer.echo(f"report: {html}")
    for path in files:
        if path.parent.name == "documents":
            typer.echo(f"document: {path}")
    return bool(len(failures))


HEADLINE = {
    "psnr": "PSNR dB ↑",
    "ssim": "SSIM ↑",
    "lpips_alex": "LPIPS ↓",
    "lr_psnr": "LR-PSNR dB ↑",
    "sharpness": "sharpness",
}
"""The metrics of the printed summary; the report has all of them."""


def _print_summary(tables: "dict[str, pd.DataFrame]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    summary = tables["summary"]
    metrics = ([m for m in HEADLINE if m in set(summary["metric"])] or list(dict.fromkeys(summary["metric"])))[:4]
    times, size = _milliseconds(tables["speed"])
    table = Table(title="Clean input: mean [95 % interval]")
    for heading in ("backend", "n", *(HEADLINE.get(m, m) for m in metrics), f"ms / image{size}"):
        table.add_column(heading, justify="left" if heading == "backend" else "right")
    for label, rows in summary.groupby("backend", sort=False):
        cells = {row["metric"]: _cell(row["mean"], row["low"], row["high"]) for row in rows.to_dict("records")}
        shown = [cells.get(m, "") for m in metrics]
        table.add_row(Text(str(label)), str(rows["n"].max()), *shown, times.get(str(label), "–"))
    Console(width=max(110, Console().width)).print(table)


def _milliseconds(speed: "pd.DataFrame") -> tuple[dict[str, str], str]:
    """Median end-to-end time of a single image by backend, marked where the pass was disturbed, and at which size."""
    if not len(speed):
        return {}, ""
    sizes = sorted(set(speed["output_px"]))
    single = speed[(speed["batch"] == 1) & (speed["output_px"] == sizes[0])].to_dict("records")
    shown = {r["backend"]: "n too small" if math.isnan(r["end_to_end_p50"]) else _time(r) for r in single}
    return shown, f", {sizes[0]:g} px" if len(sizes) > 1 else ""


def _time(row: dict[str, Any]) -> str:
    return f"{1000 * row['end_to_end_p50']:.1f}{'' if row['valid'] else ' (disturbed)'}"


def _cell(mean: float, low: float, high: float) -> str:
    if math.isnan(mean):
        return "not measured"
    if math.isinf(mean):
        return "identical"
    return f"{mean:.4g}" if math.isnan(low) else f"{mean:.4g}\n[{low:.4g}, {high:.4g}]"


@suites_app.callback()
def suites(context: typer.Context) -> None:
    """List the built-in suites, or validate one."""
    if context.invoked_subcommand is None:
        suites_list()


@suites_app.command("list")
def suites_list() -> None:
    """List the built-in suites."""
    with one_line_errors():
        from harness.suite import built_in_suites, load_suite

        for name in built_in_suites():
            suite = load_suite(name)
            typer.echo(f"{name:10} {suite.title}")


@suites_app.command("validate")
def suites_validate(suite: Annotated[str, typer.Argument(help="A built-in name or a YAML file.")]) -> None:
    """Check a suite file."""
    with one_line_errors():
        from harness.suite import load_suite

        typer.echo(f"{load_suite(suite).name}: valid")


@app.command()
def datasets(spec: Annotated[str | None, typer.Argument(help="A dataset to open: KIND:PATH[#SPLIT].")] = None) -> None:
    """List the kinds of datasets, or say what is in one."""
    with one_line_errors():
        from harness import datasets as module

        if spec is None:
            paths = {"synthetic": "", "counterfactual": ":tone or :light"}
            typer.echo("\n".join(kind + paths.get(kind, ":PATH[#SPLIT]") for kind in module.KINDS))
            return
        dataset = module.open_dataset(spec)
        typer.echo(f"{dataset.name}: {len(dataset.records)} images; licence: {dataset.licence}")
        for attribute in dataset.attributes:
            counts: dict[str, int] = {}
            for record in dataset.records:
                counts[record.labels[attribute]] = counts.get(record.labels[attribute], 0) + 1
            typer.echo(f"{attribute}: " + ", ".join(f"{group} {n}" for group, n in sorted(counts.items())))
        for note in dataset.notes:
            typer.echo(f"note: {note}")


@weights_app.callback()
def weights(context: typer.Context) -> None:
    """Show the pretrained weights that metrics and backends use, or fetch them."""
    if context.invoked_subcommand is None:
        weights_list()


@weights_app.command("list")
def weights_list() -> None:
    """Show which weights there are and whether they are at hand."""
    with one_line_errors():
        from harness.weights import status

        for entry in status():
            typer.echo(f"{entry.weight.name:42} {entry.state:10} {entry.weight.licence}")


@weights_app.command("fetch")
def weights_fetch() -> None:
    """Fetch all weights that are not at hand, and check their hashes."""
    with one_line_errors():
        from harness.weights import WEIGHTS, resolve

        for name in WEIGHTS:
            typer.echo(f"{name}: {resolve(name)}")


@backends_app.command("list")
def backends_list() -> None:
    """List the backends that ship with the product: name, family, licence, what it is."""
    from backends.registry import ENTRIES

    for entry in ENTRIES.values():
        typer.echo(f"{entry.name:14} {entry.family:13} {entry.licence:23} {entry.summary}")


@backends_app.command("serve")
def backends_serve(  # noqa: PLR0913, PLR0917 - the options of the command
    backend: Annotated[str, typer.Argument(help="NAME[,setting=value]... from `harness backends list`.")],
    address: Annotated[str, typer.Option(help="host:port; port 0 chooses a free one.")] = "127.0.0.1:50051",
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate of this server: calls are encrypted.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its unencrypted PEM key.")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="PEM authorities: clients need a certificate of theirs.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Lines of TOKEN [EXPIRY, as 2030-01-31T12:00Z]: calls need one of these."),
    ] = None,
) -> None:
    """Serve a backend in this process until it is interrupted."""
    with one_line_errors():
        from functools import partial

        from backends.access import read_access
        from backends.registry import ENTRIES
        from backends.server import AddressInUse, serve
        from harness.errors import ConfigError, Unavailable, one_line
        from harness.plan import check_address, parse_backend

        spec = parse_backend(backend)
        if spec.name not in ENTRIES:
            raise ConfigError(f"no backend {spec.name!r}; known: {', '.join(ENTRIES)}")
        if spec.address:
            raise ConfigError(f"{spec.name}@{spec.address}: give the address to serve on with --address")
        if others := spec.options.keys() - spec.settings.keys():
            raise ConfigError(f"{min(others)}: options of {spec.name} go with requests; give them to a run")
        check_address(address, 0)
        try:
            access = read_access(address, cert=tls_cert, key=tls_key, client_ca=tls_client_ca, token_file=token_file)
            serve(partial(ENTRIES[spec.name].load(), **spec.settings), address, None, access)
        except (AddressInUse, OSError, ValueError, RuntimeError) as error:
            raise Unavailable(f"{spec.name}: {one_line(str(error))}") from error


@backends_app.command("check")
def backends_check(
    backend: Annotated[str, typer.Argument(help="NAME[,option=value]..., or the HOST:PORT of a running one.")],
    credentials: CredentialsOption = None,
) -> None:
    """Check that a backend keeps the contract."""
    with one_line_errors():
        from harness.contract import check
        from harness.credentials import load_credentials

        results = check(backend, load_credentials(credentials))
        for result in results:
            typer.echo(
                f"{'ok  ' if result.passed else 'FAIL'} {result.name}{': ' if result.detail else ''}{result.detail}"
            )
    raise typer.Exit(int(not all(result.passed for result in results)))


def main() -> None:
    """Run the command line."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read on import: gRPC would log failures that we put into words
    app()
