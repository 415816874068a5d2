"""`prm annotate --convert`: label files and hub data sets from one format into another."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prmkit.annotation.curate import Curated, CurationParams, curate
from prmkit.annotation.formats import (
    RecordFormat,
    RecordParser,
    WriteFormat,
    WriteReport,
    write_records,
)
from prmkit.annotation.records import StepLabels
from prmkit.cli.ending import following_annotation, show_ending
from prmkit.cli.json_output import json_output
from prmkit.cli.loading import expect_hub
from prmkit.cli.options import build, make_parser, parse_settings, print_help, wants_help
from prmkit.cli.outputs import check_output_file
from prmkit.cli.parsing import expand_configs, user_errors
from prmkit.cli.signatures import Choice, ListOf, Plain, Setting
from prmkit.errors import ConfigError, DataError
from prmkit.io import expand_paths
from prmkit.json_objects import one_object_a_line, read_objects
from prmkit.ownership import check_file
from prmkit.progress import ProgressLine

if TYPE_CHECKING:
    from datamodules.sources import SourceConfig

__all__ = ["ConvertOptions", "convert", "run_convert"]

SUMMARY = "convert step labels from one format into another"

EXAMPLES = """
examples:
  prm annotate --convert math-aps.jsonl --to prmkit --output steps.jsonl
  prm annotate --convert runs/a/steps.jsonl runs/b/steps.jsonl --to math-aps-tree --output trees.jsonl
  prm annotate --convert 'prm800k/phase2_*.jsonl' --from prm800k --to trl --output trl.jsonl
  prm annotate --convert peiyi9979/Math-Shepherd --to prmkit --output shepherd.jsonl --limit 10000
  prm annotate --convert steps.jsonl --to prmkit --output clean.jsonl --curation.deduplicate true

Inputs are files (JSON lines, lists, objects one after another, or parquet), folders (their *.jsonl), patterns, or names
of hub data sets, which are read as streams. The output appears when it is whole; one that exists is replaced only with
--overwrite true. Formats that know right and wrong only get values above the threshold as right; whatever a format has
no place for is counted."""

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILE_KINDS = (".json", ".jsonl", ".parquet")


@dataclass(frozen=True)
class ConvertOptions:
    """What to convert besides formats and places.

    Attributes:
        split: split of hub data sets.
        limit: records at most; null takes all.
        threshold: a step is right when its value is above, in formats that know right and wrong only; in [0, 1).
        overwrite: replace an output that is there, whatever it holds; it may be one of the inputs.
        malformed: objects at most that may be left out because they do not fit the format, at least 0; each is named.
    """

    split: str = "train"
    limit: int | None = None
    threshold: float = 0.0
    overwrite: bool = False
    malformed: int = 0

    def __post_init__(self) -> None:
        if self.malformed < 0:
            raise ConfigError("malformed", self.malformed, "an integer of at least 0")
        if self.limit is not None and self.limit < 1:
            raise ConfigError("limit", self.limit, "an integer of at least 1, or null for all")


def parser() -> Any:
    """The command's parser."""
    made = make_parser(
        "prm annotate --convert",
        "prm annotate --convert INPUT [INPUT ...] --to FORMAT --output FILE [--from FORMAT] [--KEY VALUE ...]",
        (ConvertOptions,),
        {"curation": CurationParams},
    )
    made.add_argument("--convert", nargs="+", type=str, required=True, help="files, folders, patterns or hub names")
    made.add_argument("--to", type=WriteFormat, required=True, help="format to write")
    made.add_argument("--from", type=RecordFormat, default="auto", help="format read; auto looks at each first record")
    made.add_argument("--output", type=str, required=True, help="the JSON-lines file to write")
    made.prmkit_signature[0].settings.update(
        {
            "convert": Setting(ListOf(Plain("str")), True),
            "to": Setting(Choice(get_args(WriteFormat)), True),
            "from": Setting(Choice(get_args(RecordFormat)), False),
            "output": Setting(Plain("str"), True),
        }
    )
    return made


def _gathered(argv: Sequence[str]) -> list[str]:
    """The arguments with the several values of `--convert` as one list."""
    arguments: list[str] = []
    inputs: list[str] | None = None
    for argument in argv:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--"):
            arguments += [] if inputs is None else ["--convert", json.dumps(inputs)]
            inputs = None
        if flag == "--convert":
            inputs = [value] if equals else []
        elif inputs is not None:
            inputs.append(argument)
        else:
            arguments.append(argument)
    return arguments if inputs is None else [*arguments, "--convert", json.dumps(inputs)]


def run_convert(argv: list[str]) -> int:
    """Run `prm annotate --convert ...`; returns its exit status."""
    parse = parser()
    if wants_help(argv):
        print_help(parse, SUMMARY, EXAMPLES)
        return 0
    arguments, _ = expand_configs(_gathered(argv))
    with user_errors("prm annotate --convert", parse):
        values = parse_settings(parse, arguments)
        options, curation = build(ConvertOptions, values), values["curation"]
        check_output_file("output", values["output"])
    inputs, target = values["convert"], values["to"]
    check_file("--output", values["output"], lambda _: options.overwrite, "file to overwrite with --overwrite true")
    total = _count_lines(inputs, options) if options.limit is None else None
    with json_output(values["json"]) as answer, ProgressLine("convert", total) as progress:
        report, curated = convert(
            inputs, values["output"], values["from"], target, options, curation,
            lambda records: progress.advance(f"{records:,} records"),
        )  # fmt: skip
        _print_report(values["output"], target, report, curated)
        answer({"output": values["output"], "format": target, **asdict(report)})
    return 0


def convert(
    inputs: Sequence[str],
    output: str | Path,
    source_format: RecordFormat = "auto",
    target_format: WriteFormat = "prmkit",
    options: ConvertOptions = ConvertOptions(),
    curation: CurationParams = CurationParams(),  # noqa: B008 - frozen
    on_line: Callable[[int], None] | None = None,
) -> tuple[WriteReport, Curated | None]:
    """Read the records of all inputs, one after another, and write them.

    Records pass through one by one, unless curation is on: then all are held in memory.

    Args:
        inputs: files, folders, patterns, or names of hub data sets.
        output: the file; it may be one of the inputs.
        source_format: see RecordFormat; "auto" looks at the first object of each file.
        target_format: see WriteFormat.
        options: further options.
        curation: what is done to the records in between.
        on_line: called behind every line read, with the number of records so far.

    Returns:
        What was written and what the format had no place for; what curation left, None when it is off.

    Raises:
        DataError: a missing input, no record, a malformed line (file:line), or a text that the target cannot hold.
    """
    sources = [source for name in inputs for source in _sources(name, options)]
    records: Iterator[StepLabels] = islice(
        _read(sources, source_format, on_line or (lambda _: None), options.malformed), options.limit
    )
    curated = None
    if curation.active:
        held = list(records)
        curated = curate(held, curation)
        records = iter(curated.over(held))
    report = write_records(_some(records, inputs), output, target_format, options.threshold)
    return report, curated


def _sources(name: str, options: ConvertOptions) -> list[Path | SourceConfig]:
    """Files that an input names, or the stream."""
    from datamodules.sources import SourceConfig

    try:
        files = expand_paths(name)
    except DataError:
        if not _HUB_NAME.fullmatch(name) or Path(name).suffix in _FILE_KINDS:
            raise
        expect_hub()
        return [SourceConfig(kind="hub", name=name, split=options.split, streaming=True)]
    return [
        SourceConfig(kind="hub", name="parquet", path=str(file), streaming=True, label=str(file))
        if file.suffix == ".parquet"
        else file
        for file in files
    ]


def _read(
    sources: Iterable[Path | SourceConfig], source_format: RecordFormat, on_line: Callable[[int], None], malformed: int
) -> Iterator[StepLabels]:
    parse = RecordParser(source_format, malformed)
    n_records = 0
    for source in sources:
        parse.next_source(source_format)
        for where, raw in read_objects(source) if isinstance(source, Path) else _streamed(source):
            for record in parse(raw, where):
                n_records += 1
                yield record
            on_line(n_records)


def _streamed(config: SourceConfig) -> Iterator[tuple[str, Any]]:
    """Place and fields of the rows of a data set that `datasets` reads."""
    from datamodules.sources import load_hub

    return ((f"{config.title}:{number}", raw) for number, raw in enumerate(load_hub(config)))


def _some(records: Iterator[StepLabels], inputs: Sequence[str]) -> Iterator[StepLabels]:
    """The records, of which one must have a label: a file without any would look like data. Otherwise a DataError."""
    count, labelled = 0, False
    for record in records:
        count += 1
        labelled = labelled or any(value is not None for value in record.values)
        yield record
    if not labelled:
        found = f"{count} records, but all their labels are null" if count else "no step labels in there"
        raise DataError(f"{', '.join(inputs)}: {found}, so nothing is written")


def _count_lines(inputs: Sequence[str], options: ConvertOptions) -> int | None:
    """Lines of all inputs that are not blank; None when one of them is a stream, or its objects go over lines."""
    sources = [source for name in inputs for source in _sources(name, options)]
    files = [source for source in sources if isinstance(source, Path)]
    if len(files) < len(sources) or not all(map(one_object_a_line, files)):
        return None
    total = 0
    for file in files:
        with file.open("rb") as lines:
            total += sum(bool(line.strip()) for line in lines)
    return total


def _print_report(output: str, target: str, report: WriteReport, curated: Curated | None) -> None:
    results = [f"{report.records:,} records in {report.lines:,} lines of {target}"]
    if curated is not None:
        results.append(f"curation: {curated.describe()}")
    losses = {
        "values between 0 and 1 written as right or wrong": report.hardened,
        "unlabelled steps joined to the next labelled one": report.joined_steps,
        "unlabelled ends left out": report.dropped_steps,
        "records without any label left out": report.dropped_records,
        "records left out that are written already": report.repeated_records,
    }
    for what, count in losses.items():
        if count:
            results.append(f"{what}: {count:,}")
    show_ending([output], results, [following_annotation(output, "POLICY", [])])
