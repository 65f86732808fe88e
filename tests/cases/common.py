"""First table: the kinds that practitioners report most, one case each or several."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from .kinds import Case, Read, Refused
from .makers import (
    CLASSES,
    SIZE_HW,
    Made,
    Shot,
    coco_of,
    encoded,
    index_map,
    mask_png,
    raster,
    rle_counts,
    rle_text,
    shots,
    write_images,
    yolo_lines,
)

Edit = Callable[[dict[str, Any]], None]


def coco(
    edit: Edit, *, encoding: str = "utf-8", images: str = "", file: str = "annotations.json", name: str = "{}.png"
) -> Callable[[Made], str]:
    """A COCO set whose content is edited before it is written."""

    def make(made: Made) -> str:
        content = shots()
        write_images(made, content, folder=images)
        value = coco_of(content, file_name=lambda shot: name.format(shot.name))
        edit(value)
        made.write_json(file, value, encoding=encoding)
        return file

    return make


def nothing(_: dict[str, Any]) -> None:
    """Leave it as it is."""


def each_image(**values: object) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        for image in value["images"]:
            for key, new in values.items():
                if new is KeyError:
                    del image[key]
                else:
                    image[key] = new(image[key]) if callable(new) else new

    return edit


def each_annotation(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        for annotation in value["annotations"]:
            change(annotation)

    return edit


def with_truth(edit: Callable[[dict[str, Any], Made, list[Shot]], None]) -> Callable[[Made], str]:
    """A COCO set whose edit changes what is true, too."""

    def make(made: Made) -> str:
        content = shots()
        value = coco_of(content)
        edit(value, made, content)
        write_images(made, content)
        made.write_json("annotations.json", value)
        return "annotations.json"

    return make


def first_outline(ring: list[float], clipped: list[float] | None = None) -> Callable[[Made], str]:
    """A COCO set whose first outline is another one; `clipped` is what is true of it."""

    def edit(value: dict[str, Any], _: Made, content: list[Shot]) -> None:
        value["annotations"][0]["segmentation"] = [ring]
        content[0].instances = [(content[0].instances[0][0], clipped or ring)]

    return with_truth(edit)


def rle(change: Callable[[list[int], str], object], *, size: object = None) -> Callable[[Made], str]:
    """A COCO set of RLE whose first entry is of another kind."""

    def edit(value: dict[str, Any], _: Made, content: list[Shot]) -> None:
        masks = [raster([ring], SIZE_HW) for shot in content for _, ring in shot.instances]
        for annotation, mask in zip(value["annotations"], masks, strict=True):
            annotation["segmentation"] = {"size": list(SIZE_HW), "counts": rle_text(mask)}
        first = value["annotations"][0]["segmentation"]
        first["counts"] = change(rle_counts(masks[0]), rle_text(masks[0]))
        first["size"] = first["size"] if size is None else size

    return with_truth(edit)


def deep(kind: str) -> Callable[[Made], str]:
    """A COCO set of images of more than 8 bit."""

    def make(made: Made) -> str:
        content = shots()
        suffix = "png" if kind == "12 of 16" else "tif"
        for shot in content:
            grey = shot.pixels[..., 0].astype(np.float32)
            values = {
                "12 of 16": (grey * 9).astype(np.uint16),
                "0..1": grey / 255,
                "0..255": grey.copy(),
                "nan": grey / 255,
            }[kind]
            if kind == "nan":
                values[3, 5] = np.nan
            made.write_image(
                f"{shot.name}.{suffix}",
                encoded(values, "PNG" if suffix == "png" else "TIFF"),
                {n: shot.mask(n) for n, _ in shot.instances},
            )
        made.write_json("annotations.json", coco_of(content, file_name=lambda shot: f"{shot.name}.{suffix}"))
        return "annotations.json"

    return make


def mask_folders(
    *, suffix: str = ".png", encode: Callable[[Shot], bytes] | None = None, litter: bool = False
) -> Callable[[Made], str]:
    """`images/` beside `masks/` of class indices."""

    def make(made: Made) -> str:
        content = shots()
        write_images(made, content, folder="images/")
        for shot in content:
            made.write(f"masks/{shot.name}{suffix}", encode(shot) if encode else encoded(index_map(shot)))
        if litter:
            made.write("masks/.ipynb_checkpoints/im00-checkpoint.png", encoded(index_map(content[1])))
            made.write("images/.ipynb_checkpoints/im00-checkpoint.png", encoded(content[0].pixels))
            made.write("images/Thumbs.db", b"\xd0\xcf\x11\xe0")
            made.write("images/@eaDir/im00.png", encoded(content[2].pixels))
            made.write("images/._im00.png", b"\x00\x05\x16\x07")
        return "."

    return make


def per_class(name: Callable[[Shot], str], *, kind: str = "PNG") -> Callable[[Made], str]:
    """`images/` beside `masks/<class>/`, masks only where there is something."""

    def make(made: Made) -> str:
        content = shots()
        write_images(made, content, folder="images/")
        for shot in content:
            for class_name, _ in shot.instances:
                made.write(f"masks/{class_name}/{name(shot)}", mask_png(shot.mask(class_name), kind=kind))
        return "."

    return make


def mvtec(*, csv: bool = False) -> Callable[[Made], str]:
    """An MVTec AD tree; numbers start anew in every folder."""

    def make(made: Made) -> str:
        counts: dict[str, int] = {}
        rows = ["image,mask,class,group"]
        for shot in shots(14, 8):
            place = (
                f"test/{shot.instances[0][0]}"
                if shot.instances
                else ("test/good" if shot.name in ("im08", "im09") else "train/good")
            )
            number = counts.setdefault(place, 0)
            counts[place] += 1
            made.write_image(
                f"{place}/{number:03d}.png", encoded(shot.pixels), {n: shot.mask(n) for n, _ in shot.instances}
            )
            mask = ""
            for class_name, _ in shot.instances:
                mask = f"ground_truth/{class_name}/{number:03d}_mask.png"
                made.write(mask, mask_png(shot.mask(class_name)))
            rows.append(
                f"{place}/{number:03d}.png,{mask},{shot.instances[0][0] if shot.instances else 'good'},{place}{number}"
            )
        if csv:
            made.write("index.csv", "\n".join(rows) + "\n")
        return "index.csv" if csv else "."

    return make


def table(rows_of: Callable[[list[Shot]], str | bytes], *, name: str = "index.csv") -> Callable[[Made], str]:
    """`images/`, `masks/` and a CSV that names them."""

    def make(made: Made) -> str:
        content = shots()
        write_images(made, content, folder="images/")
        for shot in content:
            made.write(f"masks/{shot.name}.png", encoded(index_map(shot)))
        made.write(name, rows_of(content))
        return name

    return make


def plain_rows(content: list[Shot], *, sep: str = ",") -> list[str]:
    """The rows of the index CSV."""
    rows = [sep.join(("image", "mask", "class", "group"))]
    for number, shot in enumerate(content):
        cls = shot.instances[0][0] if shot.instances else ""
        rows.append(sep.join((f"images/{shot.name}.png", f"masks/{shot.name}.png", cls, f"g{number}")))
    return rows


def short_row(content: list[Shot]) -> str:
    rows = plain_rows(content)
    rows[3] = "images/im02.png"
    return "\n".join(rows) + "\n"


def visa(content: list[Shot]) -> str:
    rows = ["object,split,label,image,mask"]
    for shot in content:
        cells = ("anomaly", f"masks/{shot.name}.png") if shot.instances else ("normal", "")
        rows += [f"pcb,test,{cells[0]},images/{shot.name}.png,{cells[1]}"]
    return "\n".join(rows) + "\n"


def yolo(
    yaml: str,
    *,
    images: str = "images/",
    labels: str = "labels/",
    at: str = "data.yaml",
    empty: bool = False,
    encode: Callable[[str], bytes] | None = None,
    classes: tuple[str, ...] = CLASSES,
) -> Callable[[Made], str]:
    """A YOLO segmentation set; images without a defect have an empty label file only where asked."""

    def make(made: Made) -> str:
        content = shots(classes=classes)
        write_images(made, content, folder=images)
        for shot in content:
            if shot.instances or empty:
                text = yolo_lines(shot, classes)
                made.write(f"{labels}{shot.name}.txt", encode(text) if encode else text)
        made.write(at, yaml)
        return at

    return make


def roboflow(made: Made) -> str:
    """train, valid and test with images/ and labels/ each; the yaml's paths lead one folder too high."""
    for number, shot in enumerate(shots()):
        subset = "train" if number < 7 else "valid" if number < 9 else "test"
        stem = f"{shot.name}_jpg.rf.{number:032x}"
        made.write_image(
            f"{subset}/images/{stem}.jpg",
            encoded(shot.pixels, "JPEG", quality=92),
            {n: shot.mask(n) for n, _ in shot.instances},
        )
        made.write(f"{subset}/labels/{stem}.txt", yolo_lines(shot))
    made.write(
        "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['scratch', 'dent']\n",
    )
    return "data.yaml"


def root_category(value: dict[str, Any]) -> None:
    value["categories"] = [
        {"id": 0, "name": "crack", "supercategory": "none"},
        {"id": 1, "name": "crack", "supercategory": "crack"},
    ]
    for annotation in value["annotations"]:
        annotation["category_id"] = 1


def group_zero(value: dict[str, Any]) -> None:
    for number, image in enumerate(value["images"]):
        image["group"] = number // 3


def class_named(name: str) -> Edit:
    def edit(value: dict[str, Any]) -> None:
        value["categories"][0]["name"] = name

    return edit


def same_folder(made: Made) -> str:
    """The labelled images themselves as the defect-free folder."""
    content = shots(9, 9)
    write_images(made, content)
    made.write_json("annotations.json", coco_of(content))
    return "annotations.json"


def dense(num_points: int) -> Callable[[Made], str]:
    angles = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
    ring = np.stack([52 + 40 * np.cos(angles), 36 + 30 * np.sin(angles)], axis=1).reshape(-1).tolist()
    return first_outline(ring)


def jpeg_mask(shot: Shot) -> bytes:
    noisy = Image.open(io.BytesIO(encoded((index_map(shot) > 0).astype(np.uint8) * 255, "JPEG", quality=60)))
    return encoded(np.asarray(noisy))


BOW = [20.0, 14.0, 70.0, 54.0, 70.0, 14.0, 20.0, 54.0]
COMMON: tuple[Case, ...] = (
    Case("01 JSON with a byte-order mark", "a tool writes a BOM", coco(nothing, encoding="utf-8-sig"), Read()),
    Case("01 JSON in UTF-16", "a Windows tool", coco(nothing, encoding="utf-16"), Read()),
    Case("05 size null", "width, height null", coco(each_image(width=None, height=None)), Read()),
    Case("05 size empty text", 'width, height ""', coco(each_image(width="", height="")), Read()),
    Case("05 size missing", "no width, height", coco(each_image(width=KeyError, height=KeyError)), Read()),
    Case("05 size as text", '"104"', coco(each_image(width=str, height=str)), Read()),
    Case("05 size as floats", "104.0", coco(each_image(width=float, height=float)), Read()),
    Case("07 root category of the same name", "Roboflow", coco(root_category), Read(classes=None, says=("crack",))),
    Case(
        "08 annotation ids repeat",
        "two exports merged",
        coco(each_annotation(lambda a: a.update(id=a["id"] // 2))),
        Read(says=("id",)),
    ),
    Case(
        "09 category ids as text",
        "ids of another type",
        coco(each_annotation(lambda a: a.update(category_id=str(a["category_id"])))),
        Read(),
    ),
    Case(
        "09 image ids as text",
        "ids of another type",
        coco(each_annotation(lambda a: a.update(image_id=str(a["image_id"])))),
        Read(),
    ),
    Case(
        "09 a list as id",
        "a script's slip",
        coco(each_annotation(lambda a: a.update(category_id=[a["category_id"]]))),
        Refused(("category_id",)),
    ),
    Case("10 annotations without ids", "a script's slip", coco(each_annotation(lambda a: a.pop("id"))), Read()),
    Case("12 iscrowd as text", '"0"', coco(each_annotation(lambda a: a.update(iscrowd="0"))), Read()),
    Case("12 iscrowd as truth value", "false", coco(each_annotation(lambda a: a.update(iscrowd=False))), Read()),
    Case(
        "12 iscrowd as a word",
        '"maybe"',
        coco(each_annotation(lambda a: a.update(iscrowd="maybe"))),
        Refused(("iscrowd",)),
    ),
    Case(
        "14 a stray ring of two points",
        "a slip of the pen",
        coco(each_annotation(lambda a: a["segmentation"].append([5.0, 5.0, 6.0, 6.0]))),
        Read(says=("ring",)),
    ),
    Case("19 an outline crosses itself", "drawn by hand", first_outline(BOW), Read(says=("cross",))),
    Case(
        "20 beyond the left border",
        "3 px outside",
        first_outline([-3.0, 20, 30, 18, 33, 40, -3, 44], [0.0, 20, 30, 18, 33, 40, 0, 44]),
        Read(says=("left",), min_iou=0.95),
    ),
    Case(
        "20 beyond the right border",
        "2.5 px outside",
        first_outline([78.0, 20, 106.5, 18, 106.5, 40, 80, 44], [78.0, 20, 104, 18, 104, 40, 80, 44]),
        Read(says=("right",), min_iou=0.95),
    ),
    Case("22 RLE as text", "compressed", rle(lambda runs, text: text), Read()),
    Case("22 RLE as a list", "uncompressed", rle(lambda runs, text: runs), Read()),
    Case("22 RLE of floats", "2733.0", rle(lambda runs, text: [float(r) for r in runs]), Read()),
    Case("22 RLE as bytes' repr", "b'...'", rle(lambda runs, text: f"b'{text}'"), Read()),
    Case(
        "22 RLE in base64",
        "a script",
        rle(lambda runs, text: base64.b64encode(text.encode()).decode()),
        Refused(("rle",)),
    ),
    Case("22 RLE counts null", "a script", rle(lambda runs, text: None), Refused(("rle",))),
    Case(
        "22 RLE without its last zeros",
        "a script",
        rle(lambda runs, text: runs[:-1] if len(runs) % 2 else runs),
        Read(),
    ),
    Case(
        "22 RLE too long", "another image's", rle(lambda runs, text: [*runs[:-1], runs[-1] + 9000]), Refused(("rle",))
    ),
    Case("22 RLE size of nulls", "a script", rle(lambda runs, text: runs, size=[None, None]), Read()),
    Case("22 RLE size a number", "a script", rle(lambda runs, text: runs, size=72), Refused(("size",))),
    Case("22 RLE size of another image", "a script", rle(lambda runs, text: text, size=[70, 100]), Refused(("size",))),
    Case(
        "23 backslashes",
        "Label Studio on Windows",
        coco(nothing, images="images/", file="result.json", name="images\\{}.png"),
        Read(),
    ),
    Case(
        "24 result.json beside images/",
        "Label Studio",
        lambda made: (coco(nothing, images="images/", file="result.json", name="images/{}.png")(made), ".")[1],
        Read(),
    ),
    Case(
        "25 annotations/ and images/ side by side",
        "CVAT",
        lambda made: (coco(nothing, images="images/", file="annotations/instances_default.json")(made), ".")[1],
        Read(),
    ),
    Case(
        "25 the file itself", "CVAT", coco(nothing, images="images/", file="annotations/instances_default.json"), Read()
    ),
    Case("32 12 bits in 16-bit files", "cameras", deep("12 of 16"), Read(says=("16",))),
    Case("33 float TIFF of 0..1", "scientific tools", deep("0..1"), Read(says=("float",))),
    Case("33 float TIFF of 0..255", "scientific tools", deep("0..255"), Read(says=("float",))),
    Case("33 float TIFF with NaN", "scientific tools", deep("nan"), Read(says=("float",))),
    Case("40 groups numbered from 0", "a script", coco(group_zero), Read()),
    Case(
        "41 class named ../../../x",
        "an adversary",
        coco(class_named("../../../outside")),
        Read(classes=("../../../outside", "dent")),
    ),
    Case("41 class named weld [/x]", "people", coco(class_named("weld [/x]")), Read(classes=("weld [/x]", "dent"))),
    Case(
        "46 litter in folders",
        "Jupyter, Synology, macOS, Windows",
        mask_folders(litter=True),
        Read(classes=None, defect_free=3),
    ),
    Case("51 MVTec AD tree", "MVTec AD", mvtec(), Read(images=14, defect_free=6, layout="MVTec")),
    Case(
        "51 MVTec AD with an index CSV",
        "same names in several folders",
        mvtec(csv=True),
        Read(images=14, defect_free=6),
    ),
    Case(
        "52 masks with a suffix, per class",
        "im00_mask.png",
        per_class(lambda shot: f"{shot.name}_mask.png"),
        Read(images=8, says=("3 images",)),
    ),
    Case(
        "56 masks that went through JPEG",
        "values all over",
        mask_folders(encode=jpeg_mask),
        Refused(("values", "threshold")),
    ),
    Case(
        "56 the same with a threshold",
        "values all over",
        mask_folders(encode=jpeg_mask),
        Read(classes=None, min_iou=0.6),
        {"mask_threshold": 128},
    ),
    Case(
        "57 the labelled images as defect-free ones",
        "--defect-free .",
        same_folder,
        Refused(("defect-free",)),
        {"defect_free": "."},
    ),
    Case(
        "61 CSV with a byte-order mark",
        "Excel",
        table(lambda content: ("\n".join(plain_rows(content)) + "\n").encode("utf-8-sig")),
        Read(defect_free=3),
    ),
    Case(
        "61 CSV with semicolons in cp1252",
        "Excel in Europe",
        table(lambda content: "\r\n".join(plain_rows(content, sep=";")).encode("cp1252")),
        Read(defect_free=3),
    ),
    Case("61 CSV with a short row", "a slip", table(short_row), Refused(("row",))),
    Case(
        "61 VisA CSV",
        "empty mask cells of good parts",
        table(visa, name="image_anno.csv"),
        Read(classes=None, defect_free=3),
    ),
    Case("66 Roboflow YOLO", "train, valid, test", roboflow, Read(defect_free=3, says=("split",))),
    Case(
        "69 labels beside images",
        "image.txt beside image.png",
        yolo("train: images\nval: images\nnc: 2\nnames: [scratch, dent]\n", labels="images/"),
        Read(images=8, says=("3 images",)),
    ),
    Case(
        "70 names as text",
        "names: crack",
        yolo("names: crack\n", classes=("crack",)),
        Read(images=8, classes=("crack",)),
    ),
    Case(
        "70 names as dict of text", "names: {scratch: 0}", yolo("names: {scratch: 0, dent: 1}\n"), Refused(("names",))
    ),
    Case(
        "73 data.yaml with path:",
        "cfg/data.yaml",
        yolo(
            "path: ../set\ntrain: images\nval: images\nnames: {0: scratch, 1: dent}\n",
            images="set/images/",
            labels="set/labels/",
            at="cfg/data.yaml",
            empty=True,
        ),
        Read(defect_free=3),
    ),
    Case("84 one outline of 20,000 points", "a smoothing tool", dense(20_000), Read(), within_s=2.0),
    Case("84 one outline of 100,000 points", "a smoothing tool", dense(100_000), Read(), within_s=4.0),
)
