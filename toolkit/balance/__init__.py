"""`toolkit balance`: a dataset folder whose train split has enough of every class."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from converters.convert import link_or_copy
from converters.dataset import Dataset, Image
from converters.errors import InputError
from converters.files import staged_folder, write_text
from converters.folder import CARD, DatasetFolder, fold_numbers
from converters.formats.coco import write_coco
from converters.formats.yolo import write_yolo
from toolkit.balance.compose import Composed, Rules, Task, compose, read_pixels
from toolkit.balance.donors import Donor, cut_out
from toolkit.balance.objects import (
    DIRECTED,
    Parts,
    coherence,
    find_object,
)
from toolkit.balance.place import Placement
from toolkit.balance.plan import ClassPlan, Limits, Plan, make_plan, product_of
from toolkit.balance.sheet import write_sheet
from toolkit.balance.states import Seen, find_states, look_at
from toolkit.balance.vary import Variation, vary
from toolkit.config import BalanceConfig
from toolkit.console import track
from toolkit.evaluate.metrics import Figure
from toolkit.scene import Glance, glance, lie_alike

__all__ = ["Balanced", "ClassPlan", "Plan", "balance"]

_LOOKED_AT = 30  # pictures of a product, to see whether its parts lie alike

_ALONG = 10.0  # degrees that defects of a brushed surface are rotated by, so that it stays brushed

SHEET = "balance.png"
"""Contact sheet in the folder that is made."""


@dataclass(frozen=True)
class Balanced:
    """What was planned, and done.

    Attributes:
        plans: by fold, a single one under None where there are none.
        pictures: new pictures that were written.
        not_placed: planned pastes for which no place was found, by class.
        lost: instances of hosts that pastes covered completely.
        written: whether a folder was made.
        seams: accuracy at telling pasted from real defects by blending, where that was asked for;
            0.5 where nothing gives a paste away.
    """

    plans: Mapping[int | None, Plan]
    pictures: int
    not_placed: Mapping[str, int]
    lost: int
    written: bool
    seams: Mapping[str, Figure] = field(default_factory=dict)


def balance(config: BalanceConfig) -> Balanced:
    """Write a dataset folder with a balanced train split; val and test stay as they are.

    Donors and hosts are train's own pictures, of each fold for itself.

    Raises:
        InputError: the dataset has no train split with defects, a class to leave alone is not
            known, a picture cannot be used, or the destination is taken.
    """
    folders = _folds(config)
    splits = {folder.fold: {n: folder.read(n) for n in folder.splits()} for folder in folders}
    for folder in folders:
        _check(config, folder, splits[folder.fold].get("train"))
    products = {fold: _products(config, of_fold["train"]) for fold, of_fold in splits.items()}
    plans = {
        fold: _plan(config, of_fold["train"], products[fold]) for fold, of_fold in splits.items()
    }
    if config.dry_run:
        return Balanced(plans, 0, {}, 0, written=False)
    if config.dest is None:
        raise InputError("dest: name the dataset folder to make, or ask for the plan by --dry-run")
    not_placed: Counter[str] = Counter()
    pictures = lost = 0
    with staged_folder(config.dest) as staging:
        numbers = _Numbers.after([d for of_fold in splits.values() for d in of_fold.values()])
        (staging / "images").mkdir()
        _link(staging, [d for of_fold in splits.values() for d in of_fold.values()])
        for fold, of_fold in splits.items():
            filled = _fill(config, of_fold["train"], plans[fold], products[fold], staging, fold)
            of_fold["train"] = numbers.join(filled)
            not_placed += filled.not_placed
            pictures += filled.written
            lost += filled.lost
        for fold, of_fold in splits.items():
            _write(staging, fold, of_fold, folders[0])
        shown = next(iter(splits.values()))["train"]
        write_sheet(staging / SHEET, shown, staging / "images", _workers(config))
        _write_card(staging, config, folders[0].card, splits, plans, not_placed)
        seams = _seams(config, staging, folders[0].fold) if config.seam_test else {}
    return Balanced(plans, pictures, dict(not_placed), lost, written=True, seams=seams)


def _seams(config: BalanceConfig, made: Path, fold: int | None) -> dict[str, Figure]:
    from toolkit.balance.seam import seam_test  # brings torch

    return seam_test(DatasetFolder.open(made, fold).read("train"), seed=config.seed)


def _folds(config: BalanceConfig) -> list[DatasetFolder]:
    """The folds to balance: the one that was named, or all."""
    numbers: list[int | None] = [config.fold]
    if config.fold is None:
        numbers = [*fold_numbers(config.dataset)] or [None]
    return [DatasetFolder.open(config.dataset, number) for number in numbers]


def _check(config: BalanceConfig, folder: DatasetFolder, train: Dataset | None) -> None:
    """Refuse a train split that there is nothing to do with."""
    if config.method != "oversample":
        folder.require_places("pasting (--method oversample lists pictures again)")
    where = folder.annotations("train")  # says so where there is none
    if train is None or not sum(train.count_instances().values()):
        raise InputError(f"{where}: has no defect: there is nothing to balance")
    unknown = sorted(set(config.never_paste) - set(train.categories))
    if unknown:
        raise InputError(
            f"never_paste: {unknown[0]!r} is no class of {config.dataset}: "
            f"its classes are {', '.join(train.categories)}"
        )


def _plan(config: BalanceConfig, train: Dataset, products: Mapping[str, _Product]) -> Plan:
    never = dict.fromkeys(config.never_paste, "named by --never-paste")
    if config.method != "oversample":
        never = {**_states(train, products, _workers(config)), **never}
        never |= {
            name: "it has no masks"
            for name in train.categories
            if name not in never and not _has_masks(train, name)
        }
    return make_plan(
        train,
        config.target,
        method=config.method,
        limits=Limits(
            config.per_donor,
            config.per_host,
            config.per_picture,
            config.repeats,
            config.smallest,
        ),
        never_paste=never,
        seed=config.seed,
        lvis_threshold=config.lvis_threshold,
    )


def _has_masks(train: Dataset, name: str) -> bool:
    of_class = [i for image in train.images for i in image.instances if i.category == name]
    return not of_class or any(instance.mask is not None for instance in of_class)


def _states(train: Dataset, products: Mapping[str, _Product], workers: int) -> dict[str, str]:
    defective = [image for image in train.images if not image.is_good]

    def look(image: Image) -> list[Seen]:
        parts = products[product_of(image)].parts
        part = parts.on(read_pixels(image.path), image.file_name)
        return [look_at(each, part) for each in image.instances if each.mask is not None]

    with ThreadPoolExecutor(workers) as pool:
        return find_states(train.categories, chain.from_iterable(pool.map(look, defective)))


def _workers(config: BalanceConfig) -> int:
    return config.workers or os.cpu_count() or 1


@dataclass(frozen=True)
class _Filled:
    """A train split and what was added to it.

    Attributes:
        train: with what is listed again.
        new: pictures with pasted defects.
        written: pictures that were written, variations included.
        not_placed: planned pastes for which no place was found, by class.
        lost: instances of hosts that are covered completely.
    """

    train: Dataset
    new: list[Image]
    written: int
    not_placed: Counter[str]
    lost: int


def _fill(
    config: BalanceConfig,
    train: Dataset,
    plan: Plan,
    products: Mapping[str, _Product],
    staging: Path,
    fold: int | None,
) -> _Filled:
    """Carry out a plan."""
    again = [
        replace(train.images[position], copy_of=train.images[position].id, id=0)
        for position, times in sorted(plan.repeats.items())
        for _ in range(times)
    ]
    if config.vary:
        again = _varied(config, again, staging, fold)
    tasks = _tasks(train, plan, products, _cut_out(config, train, plan), staging, fold)
    rules = _rules(config)
    new: list[Image] = []
    missed: Counter[str] = Counter()
    lost = 0
    with ThreadPoolExecutor(_workers(config)) as pool:
        composed = track(pool.map(partial(compose, rules=rules), tasks), "pasting", len(tasks))
        for task, done in zip(tasks, composed, strict=True):
            found = Counter(i.category for i in done.instances if i.pasted is not None)
            missed += Counter(donor.category for donor in task.donors) - found
            lost += done.lost
            if done.pasted:
                new.append(_entry(task, done))
    written = len(new) + len(again) * config.vary
    return _Filled(train.subset((*train.images, *again)), new, written, missed, lost)


def _varied(
    config: BalanceConfig, again: list[Image], staging: Path, fold: int | None
) -> list[Image]:
    """Pictures that differ in place of entries that repeat one."""
    prefix = "varied" if fold is None else f"varied_fold{fold}"
    tasks = [
        Variation(
            number,
            image,
            staging / "images" / f"{prefix}_{number:05}_{Path(image.file_name).stem}.png",
        )
        for number, image in enumerate(again)
    ]
    with ThreadPoolExecutor(_workers(config)) as pool:
        made = track(pool.map(partial(vary, seed=config.seed), tasks), "varying", len(tasks))
        return [
            replace(
                task.image,
                file_name=task.target.name,
                path=task.target,
                instances=instances,
                photograph=task.image.photograph or task.image.copy_of,
            )
            for task, instances in zip(tasks, made, strict=True)
        ]


def _rules(config: BalanceConfig) -> Rules:
    return Rules(
        blend=config.blend,
        scale=config.scale,
        flip=config.flip,
        photometric=config.photometric,
        match=config.match,
        max_overlap=config.max_overlap,
        seed=config.seed,
    )


@dataclass(frozen=True)
class _Product:
    """What all pictures of a product have in common.

    Attributes:
        parts: where the part is.
        place: where defects go.
        rotate: most degrees that they are rotated by.
    """

    parts: Parts
    place: Placement
    rotate: float


def _products(config: BalanceConfig, train: Dataset) -> dict[str, _Product]:
    """By product; auto puts defects where they were if its parts lie alike, else onto the part.

    Nothing where no defect is to be pasted.
    """
    if config.method == "oversample":
        return {}
    by_product: defaultdict[str, list[Image]] = defaultdict(list)
    for image in sorted(train.images, key=lambda image: not image.is_good):
        by_product[product_of(image)].append(image)
    products = {}
    for product, images in by_product.items():
        good = [image for image in images if image.is_good] or images
        with ThreadPoolExecutor(_workers(config)) as pool:
            seen = list(pool.map(_look, good[:_LOOKED_AT]))
        place: Placement = "foreground"
        if config.place != "auto":
            place = config.place
        elif len(seen) > 1 and lie_alike([look.glance for look in seen]):
            place = "same-place"
        rotate = config.rotate
        if rotate is None:
            directed = median(look.coherence for look in seen) >= DIRECTED
            rotate = _ALONG if directed else 180.0
        fills = 2 * sum(look.fills for look in seen) >= len(seen)
        products[product] = _Product(Parts(config.objects, fills), place, rotate)
    return products


@dataclass(frozen=True)
class _Look:
    """What a picture of a good part shows of its product.

    Attributes:
        glance: the picture at a glance.
        fills: whether the surface fills it.
        coherence: how much the texture runs one way.
    """

    glance: Glance
    fills: bool
    coherence: float


def _look(image: Image) -> _Look:
    pixels = read_pixels(image.path)
    return _Look(glance(pixels), bool(find_object(pixels).all()), coherence(pixels))


def _cut_out(config: BalanceConfig, train: Dataset, plan: Plan) -> dict[tuple[int, int], Donor]:
    """Every donor of the plan, by its position."""
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for picture, index in chain.from_iterable(donors for _, donors in plan.pastes):
        wanted[picture].add(index)

    def cut(picture: int) -> list[Donor]:
        image = train.images[picture]
        pixels = read_pixels(image.path)
        return [cut_out(pixels, image, index) for index in sorted(wanted[picture])]

    with ThreadPoolExecutor(_workers(config)) as pool:
        return {
            (picture, index): donor
            for picture, donors in zip(wanted, pool.map(cut, wanted), strict=True)
            for index, donor in zip(sorted(wanted[picture]), donors, strict=True)
        }


def _tasks(
    train: Dataset,
    plan: Plan,
    products: Mapping[str, _Product],
    cut: Mapping[tuple[int, int], Donor],
    staging: Path,
    fold: int | None,
) -> list[Task]:
    """What is to be made."""
    prefix = "pasted" if fold is None else f"pasted_fold{fold}"
    return [
        Task(
            number,
            train.images[host],
            tuple(cut[donor] for donor in donors),
            products[product_of(train.images[host])].place,
            products[product_of(train.images[host])].rotate,
            products[product_of(train.images[host])].parts,
            staging
            / "images"
            / f"{prefix}_{number:05}_{Path(train.images[host].file_name).stem}.png",
        )
        for number, (host, donors) in enumerate(plan.pastes)
    ]


def _entry(task: Task, done: Composed) -> Image:
    """The new picture in the dataset; it shows its host's photograph."""
    return replace(
        task.host,
        file_name=task.target.name,
        path=task.target,
        instances=done.instances,
        id=0,
        photograph=task.host.photograph or task.host.id,
        copy_of=task.host.id,
    )


@dataclass
class _Numbers:
    """The next free ids of pictures and annotations."""

    image: int
    annotation: int

    @classmethod
    def after(cls, datasets: Sequence[Dataset]) -> _Numbers:
        """Beyond all that are in use in any split."""
        images = [image for dataset in datasets for image in dataset.images]
        return cls(
            1 + max(image.id for image in images),
            1 + max((i.id for image in images for i in image.instances), default=0),
        )

    def join(self, filled: _Filled) -> Dataset:
        """Train with the new pictures, and a number for whatever has none."""
        numbered = []
        for image in (*filled.train.images, *filled.new):
            if image.id:
                numbered.append(image)
                continue
            instances = tuple(
                replace(instance, id=self.annotation + offset)
                for offset, instance in enumerate(image.instances)
            )
            self.annotation += len(instances)
            numbered.append(replace(image, id=self.image, instances=instances))
            self.image += 1
        return filled.train.subset(tuple(numbered))


def _link(staging: Path, datasets: Sequence[Dataset]) -> None:
    for name, path in {i.file_name: i.path for d in datasets for i in d.images}.items():
        if not path.exists():
            raise InputError(f"{path}: is missing: convert again")
        (staging / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, staging / "images" / name)


def _write(
    staging: Path, fold: int | None, splits: Mapping[str, Dataset], source: DatasetFolder
) -> None:
    folder = staging if fold is None else staging / "folds" / str(fold)
    for name, dataset in splits.items():
        write_coco(folder / f"{name}.json", dataset, licence=str(source.card.get("licence", "")))
    prefix = "" if fold is None else f"fold{fold}_"
    if (source.root / f"{prefix}data.yaml").is_file():
        write_yolo(splits, staging, prefix=prefix)


def _write_card(
    staging: Path,
    config: BalanceConfig,
    card: Mapping[str, Any],
    splits: Mapping[int | None, Mapping[str, Dataset]],
    plans: Mapping[int | None, Plan],
    not_placed: Mapping[str, int],
) -> None:
    """The source's card, and how it was balanced; the findings there are about the source."""
    chosen = config.model_dump(
        mode="json", exclude={"dataset", "dest", "dry_run", "workers", "seam_test"}
    )
    classes = {fold: [asdict(each) for each in plan.classes] for fold, plan in plans.items()}
    counts = {fold: of_fold["train"].count_instances() for fold, of_fold in splits.items()}
    single = next(iter(plans)) is None
    content = {
        **card,
        "balance": {
            **chosen,
            "plan": classes[None] if single else classes,
            "train_instances": counts[None] if single else counts,
            "not_placed": dict(not_placed),
        },
    }
    write_text(
        staging / CARD, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
    )
