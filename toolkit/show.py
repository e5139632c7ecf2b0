"""What each command prints when it is done: a few lines for a person, JSON for a machine.

Every function takes the command's configuration and result and returns the exit code.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from converters.dataset import GOOD
from toolkit.architectures import PLAIN, WORLD

if TYPE_CHECKING:
    from pathlib import Path

    from converters.convert import Conversion
    from converters.crops import Crops
    from converters.findings import Finding
    from toolkit.balance import Balanced
    from toolkit.config import (
        AdaptConfig,
        BalanceConfig,
        CheckConfig,
        CompareConfig,
        ConvertConfig,
        CropConfig,
        DemoConfig,
        EvaluateConfig,
        ExperimentConfig,
        ExportConfig,
        FinetuneClassifierConfig,
        FinetuneSamConfig,
        FinetuneYoloConfig,
        PredictConfig,
        PretrainConfig,
        PromptsMakeConfig,
        ReportConfig,
        SynthConfig,
        WeightsGetConfig,
        WeightsListConfig,
        WeightsVerifyConfig,
    )
    from toolkit.detect.export import Exported
    from toolkit.detect.prompts import Prompts
    from toolkit.evaluate import Comparison, Metrics
    from toolkit.experiment import Experiment
    from toolkit.runs import RunFolder
    from toolkit.segment.export import ExportedSegmenter
    from toolkit.weights_folder import Checked, Got, Listed


def conversion(config: ConvertConfig, result: Conversion, *, as_json: bool) -> int:
    """Counts per class and split, what was left out, and what to do next."""
    from converters.findings import count_by_code

    counts = count_by_code(result.findings)
    if as_json:
        splits = [
            {name: _counts(result, images) for name, images in assignment.items()}
            for assignment in result.assignments
        ]
        _json(
            {
                "dataset": str(config.dest),
                "splits": splits,
                "excluded": result.excluded,
                "findings": counts,
            }
        )
        return 0
    from rich.table import Table

    for fold, assignment in enumerate(result.assignments):
        title = f"{config.dest}" + (f", fold {fold}" if len(result.assignments) > 1 else "")
        table = Table("class", title=title, title_justify="left")
        for name in assignment:
            table.add_column(f"{name}: images", justify="right")
            table.add_column("instances", justify="right")
        by_split = [_counts(result, images) for images in assignment.values()]
        for label in (GOOD, *result.dataset.categories):
            row = [label]
            for count in by_split:
                instances = count["instances"].get(label)
                row += [str(count["images"][label]), "" if instances is None else str(instances)]
            table.add_row(*row)
        _print(table)
    if result.excluded:
        _print(f"{len(result.excluded)} pictures left out; dataset.yaml says which and why")
    if counts:
        listed = ", ".join(f"{count} {code}" for code, count in counts.items())
        _print(f"found: {listed} (`toolkit check {config.dest}` lists them)")
    return 0


def cropped(config: CropConfig, result: Crops, *, as_json: bool) -> int:
    """How many windows there are, and what the label of a window cost."""
    counts = {
        "defects": result.defects,
        "good": result.good,
        "good_missing": result.short,
        "instances_left_out": result.left_out,
    }
    if as_json:
        _json({"dataset": str(config.dest), **counts})
        return 0
    _print(f"{config.dest}: {result.defects} windows around defects, {result.good} good ones")
    if result.short:
        _print(f"{result.short} good windows are missing: their splits have no good picture")
    if result.left_out:
        _print(
            f"{result.left_out} instances of another category than their window's were left out, "
            "because more of them lies in it"
        )
    return 0


def balanced(config: BalanceConfig, result: Balanced, *, as_json: bool) -> int:
    """The plan: every class before and after, and how; then what came of it."""
    if as_json:
        _json(
            {
                "dataset": None if config.dest is None or not result.written else str(config.dest),
                "plans": {
                    "all" if fold is None else str(fold): [
                        {**asdict(each), "after": each.after} for each in plan.classes
                    ]
                    for fold, plan in result.plans.items()
                },
                "pictures": result.pictures,
                "not_placed": dict(result.not_placed),
                "lost": result.lost,
                "seams": {name: asdict(figure) for name, figure in result.seams.items()},
            }
        )
        return 0
    from rich.table import Table

    for fold, plan in result.plans.items():
        title = f"{config.dataset}, train" + ("" if fold is None else f", fold {fold}")
        table = Table("class", title=title, title_justify="left")
        for name in ("images", "instances", "wanted", "pasted", "listed again", "after"):
            table.add_column(name, justify="right")
        table.add_column("note")
        for each in plan.classes:
            numbers = (each.images, each.instances, each.wanted, each.pasted, each.repeated)
            table.add_row(each.category, *map(str, (*numbers, each.after)), each.note)
        _print(table)
    if not result.written:
        _print("planned only: nothing was written")
        return 0
    see = "; balance.png shows real and pasted ones" if result.pictures else ""
    _print(f"{config.dest}: {result.pictures} new pictures{see}")
    for name, count in result.not_placed.items():
        _print(f"{count} of {name} found no place: try --place anywhere or --max-overlap 0.2")
    for name, figure in result.seams.items():
        low, high = figure.ci95 or (0.0, 1.0)
        _print(
            f"{name}: a small network tells pasted from real with accuracy {figure.value:.2f} "
            f"[{low:.2f}, {high:.2f}] (0.5: cannot)"
        )
    if result.lost:
        _print(f"{result.lost} instances were covered completely by what was pasted over them")
    return 0


def findings(config: CheckConfig, result: list[Finding], *, as_json: bool) -> int:
    """The findings; exit code 1 where there is an error (with ``strict``, a warning)."""
    serious = {"error", "warning"} if config.strict else {"error"}
    code = 1 if any(finding.severity in serious for finding in result) else 0
    if as_json:
        _json([finding.to_dict() for finding in result])
        return code
    from rich.table import Table

    if not result:
        _print(f"{config.dataset}: nothing found")
        return code
    table = Table("severity", "what", "where", "finding", box=None, pad_edge=False)
    for finding in result:
        text = finding.message + (f": {finding.remedy}" if finding.remedy else "")
        table.add_row(finding.severity, finding.code, finding.file, text)
    _print(table)
    levels = [finding.severity for finding in result]
    _print(", ".join(f"{levels.count(level)} {level}" for level in ("error", "warning", "info")))
    return code


def synthesised(config: SynthConfig, result: dict[str, int], *, as_json: bool) -> int:
    """How many pictures of what were made."""
    if as_json:
        _json({"folder": str(config.dest), "images": result})
        return 0
    _print(f"{config.dest}: " + ", ".join(f"{count} {name}" for name, count in result.items()))
    return 0


def pretrained(config: PretrainConfig, result: RunFolder, *, as_json: bool) -> int:
    """Where the run lies and how to start from it."""
    if as_json:
        _json({"run": str(result.root)})
        return 0
    _print(f"{result.root}: done; start from it with `toolkit finetune … --weights {result.root}`")
    return 0


def adapted(config: AdaptConfig, result: RunFolder, *, as_json: bool) -> int:
    """Where the run lies and how to start from it."""
    if as_json:
        _json({"run": str(result.root)})
        return 0
    kind = {"nano": "sam", WORLD: "yolo"}.get(config.model, "classifier")
    fold = "" if config.fold is None else f" --fold {config.fold}"
    _print(
        f"{result.root}: done; start from it with "
        f"`toolkit finetune {kind} --data {config.data}{fold} --weights {result.root} --out RUN`"
    )
    return 0


def run(
    config: FinetuneYoloConfig | FinetuneSamConfig | FinetuneClassifierConfig,
    result: RunFolder,
    *,
    as_json: bool,
) -> int:
    """Where the run lies and how to score it."""
    if as_json:
        _json({"run": str(result.root)})
        return 0
    fold = "" if config.fold is None else f" --fold {config.fold}"
    _print(
        f"{result.root}: done; score it with "
        f"`toolkit evaluate --data {config.data}{fold} --predictions {result.root}`"
    )
    return 0


def prompts(config: PromptsMakeConfig, result: Prompts, *, as_json: bool) -> int:
    """Classes with their phrases, which two are most alike, and what the file is for."""
    alike = result.most_alike()
    if as_json:
        _json({"path": result.path, "phrases": result.phrases, "most_alike": alike})
        return 0
    for name, phrases in result.phrases.items():
        _print(f"{name}: {'; '.join(phrases)}")
    if alike is not None:
        _print(f"most alike: {alike[0]} and {alike[1]} (cosine {alike[2]:.2f})")
    _print(
        f"{result.path}: {len(result.phrases)} classes; look for them with "
        f"`toolkit predict SOURCE --detector yolov8s-worldv2.pt --embeddings {result.path} "
        "--out FOLDER`"
    )
    return 0


def predicted(config: PredictConfig, result: dict[str, int], *, as_json: bool) -> int:
    """How many detections were written where."""
    if as_json:
        _json({"folder": str(config.out), "detections": result})
        return 0
    counts = ", ".join(f"{count} on {name}" for name, count in result.items())
    _print(f"{config.out / 'predictions'}: {counts}")
    return 0


def metrics(config: EvaluateConfig, result: Metrics, *, as_json: bool) -> int:
    """The table of figures with their intervals."""
    if as_json:
        _json(result.to_json())
        return 0
    from toolkit.evaluate import print_metrics

    print_metrics(result)
    return 0


def comparison(config: CompareConfig, result: Comparison, *, as_json: bool) -> int:
    """The table of differences, ready to paste."""
    if as_json:
        _json(result.to_json())
    else:
        print(result.to_markdown())
    return 0


def experimented(config: ExperimentConfig, result: Experiment, *, as_json: bool) -> int:
    """The table, and what went wrong; exit code 1 where a run failed."""
    if as_json:
        _json(result.to_json())
    else:
        print(result.to_markdown())
        for place, error in result.failed.items():
            _print(f"{place}: failed: {error} (see {result.root / 'jobs' / place}.log)")
        _print(f"{result.root}: table.md, table.csv, table.html, results.json")
    return 1 if result.failed else 0


def reported(config: ReportConfig, result: Path, *, as_json: bool) -> int:
    """Where the page lies."""
    size = result.stat().st_size
    if as_json:
        _json({"page": str(result), "bytes": size})
        return 0
    _print(f"{result}: {size / 1e6:.1f} MB; open it in a browser, no network is needed")
    return 0


def exported(config: ExportConfig, result: Exported | ExportedSegmenter, *, as_json: bool) -> int:
    """Where the model lies, and how it compares with ours."""
    if as_json:
        _json(asdict(result))
    elif result.kind == "segmenter":
        _exported_segmenter(config, result)
    else:
        _exported_detector(config, result)
    return 0


def _exported_detector(config: ExportConfig, result: Exported) -> None:
    found = result.agreement
    _print(
        f"{result.path}: {result.format}, {len(result.classes)} classes, {result.image_size} px; "
        f"{result.description} says what goes in and what comes out"
    )
    _print(
        f"checked on {found.pictures} pictures ({found.pictures_from}): at {found.places} places "
        f"it gives the same boxes as {config.run} to {found.pixels:.2g} px, "
        f"and the same scores to {found.score:.2g}"
    )
    _print(
        f"boxes left: {found.exported_boxes}, of ours {found.boxes}; per picture "
        f"{1000 * found.exported_seconds:.3g} ms, ours {1000 * found.seconds:.3g} ms"
    )


def _exported_segmenter(config: ExportConfig, result: ExportedSegmenter) -> None:
    found = result.agreement
    _print(
        f"{result.path}: {result.format}, SAM {result.architecture}, {result.image_size} px; "
        f"{result.description} says what goes in and what comes out"
    )
    _print(
        f"checked on pictures: {found.pictures} ({found.pictures_from}), boxes: {found.boxes}; it "
        f"gives the same logits as {config.run} to {found.logits:.2g}, "
        f"and the same estimates of the IoU to {found.iou:.2g}"
    )
    _print(
        f"per picture with its boxes {1000 * found.exported_seconds:.3g} ms, "
        f"ours {1000 * found.seconds:.3g} ms"
    )


def weights_listed(config: WeightsListConfig, result: list[Listed], *, as_json: bool) -> int:
    """Every name with its command, licence, size and place."""
    if as_json:
        _json([{**asdict(e.known), "size_bytes": e.size_bytes, "path": e.path} for e in result])
        return 0
    from rich.table import Table

    table = Table("name", "for", "licence", box=None, pad_edge=False)
    table.add_column("MB", justify="right")
    table.add_column("where", no_wrap=True)
    table.add_column("note")
    for each in result:
        known = each.known
        size = "" if each.size_bytes is None else f"{each.size_bytes / 1e6:.1f}"
        if each.path is not None:
            where = str(each.path) if known.url else "comes with the toolkit"
        else:
            where = f"not here: toolkit weights get {known.name}" if known.url else "not installed"
        table.add_row(known.name, known.task, known.licence, size, where, known.note)
    _print(table)
    return 0


def weights_got(config: WeightsGetConfig, result: Got, *, as_json: bool) -> int:
    """Where the file lies, what it was compared with, and how to start from it."""
    from toolkit.known_weights import find

    known, checked = result.known, result.checked
    if as_json:
        _json(
            {
                "name": known.name,
                "downloaded": result.downloaded,
                **({"path": known.place()} if checked is None else asdict(checked)),
            }
        )
        return 0
    if checked is None:
        _print(f"{known.name}: comes with the toolkit: use --weights starter")
        return 0
    done = "downloaded" if result.downloaded else "is here already, nothing was downloaded"
    weights = known.name if find(known.name) == checked.path else checked.path
    _print(f"{checked.path}: {done}; {checked.detail}")
    if known.task == "prompts make":
        _print("use it with `toolkit prompts make PHRASES.yaml --out FILE.safetensors`")
        return 0
    arch = f" --arch {known.name}" if known.name in PLAIN else ""
    _print(f"start from it with `toolkit {known.task}{arch} --weights {weights}`")
    return 0


def weights_verified(config: WeightsVerifyConfig, result: list[Checked], *, as_json: bool) -> int:
    """A line per file; exit code 1 where one is damaged."""
    code = 1 if any(each.status == "damaged" for each in result) else 0
    if as_json:
        _json([asdict(each) for each in result])
        return code
    for each in result:
        _print(f"{each.status}: {each.path}: {each.detail}")
    if not result:
        _print(f"{config.folder}: no weights here")
    return code


def demo(config: DemoConfig, result: dict[str, Any], *, as_json: bool) -> int:
    """What the demo made; its tables were printed as it went."""
    if as_json:
        _json(result)
    return 0


def _counts(result: Conversion, images: Any) -> dict[str, dict[str, int]]:
    subset = result.dataset.subset(images)
    return {"images": subset.count_images(), "instances": subset.count_instances()}


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def _print(content: Any) -> None:
    """Print text or a rich table; a pipe gets whole lines, not lines cut at 80 columns."""
    import sys

    from rich.console import Console

    width = None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", 160))
    Console(width=width, highlight=False, soft_wrap=isinstance(content, str)).print(
        content, markup=False
    )
