"""Files in COCO format: faults are named, and spellings that mean the same are read alike."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import train_detector
from detector.coco_file import CocoFile
from detector.data import IGNORED, DataError, ValidationSet
from detector.evaluation import average_precision

pytestmark = pytest.mark.example


def change(*path_and_value):
    """A function that sets content[path[0]][path[1]]... to a value."""

    def apply(content):
        *path, last, value = path_and_value
        for key in path:
            content = content[key]
        content[last] = value

    return apply


def remove(*path):
    """A function that deletes content[path[0]][path[1]]..."""

    def apply(content):
        *start, last = path
        for key in start:
            content = content[key]
        del content[last]

    return apply


ANNOTATION = ("annotations", 3)  # annotation 17, of image 1 and category 7
BOX = (*ANNOTATION, "bbox")
IMAGE_ID = (*ANNOTATION, "image_id")
CATEGORY_ID = (*ANNOTATION, "category_id")
CROWD = (*ANNOTATION, "iscrowd")
NOT_FOUR = "annotation 17: bbox .* is not four numbers"
NOT_AN_ID = "is neither an integer nor a string"
NOT_A_SIDE = "is not a whole number above 0"
HUGE = 10**400  # a whole number in JSON, too large for a float


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (change(*BOX, [9, 9, 5, -5]), "annotation 17: bbox .* has no area"),
        (change(*BOX, [9, 9, -5, 5]), "annotation 17: bbox .* has no area"),
        (change(*BOX, [9, 9, 0, -5]), "annotation 17: bbox .* has no area"),
        (change(*BOX, [61, 9, 5, 5]), "annotation 17: bbox .* has no area in the 60 x 40 image"),
        (change(*BOX, [60, 9, 5, 5]), "annotation 17: bbox .* has no area in the 60 x 40 image"),
        (change(*BOX, [9, -5, 5, 5]), "annotation 17: bbox .* has no area in the 60 x 40 image"),
        (change(*BOX, [9, 9, 5]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, math.nan]), NOT_FOUR),
        (change(*BOX, [math.inf, 9, 5, 5]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, 1e39]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, HUGE]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, "5"]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, None]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, True]), NOT_FOUR),
        (change(*BOX, [9, 9, 5, [5]]), NOT_FOUR),
        (change(*BOX, {"x": 9, "y": 9, "width": 5, "height": 5}), NOT_FOUR),
        (change(*BOX, "9 9 5 5"), NOT_FOUR),
        (change(*BOX, None), NOT_FOUR),
        (remove(*BOX), NOT_FOUR),
        (change(*IMAGE_ID, 99), "annotation 17: unknown image 99$"),
        (change(*IMAGE_ID, "1"), "unknown image '1': it is of type str, the ids .* int$"),
        (change(*IMAGE_ID, [1]), rf"annotation 17: image_id \[1\] \(list\) {NOT_AN_ID}"),
        (change(*IMAGE_ID, None), rf"annotation 17: image_id None \(NoneType\) {NOT_AN_ID}"),
        (change(*IMAGE_ID, True), rf"annotation 17: image_id True \(bool\) {NOT_AN_ID}"),
        (change(*IMAGE_ID, 1.5), rf"annotation 17: image_id 1.5 \(float\) {NOT_AN_ID}"),
        (change(*IMAGE_ID, math.nan), rf"annotation 17: image_id nan \(float\) {NOT_AN_ID}"),
        (change(*CATEGORY_ID, 4), "annotation 17: unknown category 4$"),
        (change(*CATEGORY_ID, "7"), "unknown category '7': it is of type str, .* int$"),
        (change(*CATEGORY_ID, [7]), rf"annotation 17: category_id \[7\] \(list\) {NOT_AN_ID}"),
        (change(*CATEGORY_ID, {"id": 7}), rf"annotation 17: category_id .* \(dict\) {NOT_AN_ID}"),
        (change(*CATEGORY_ID, None), rf"annotation 17: category_id None .* {NOT_AN_ID}"),
        (change(*CATEGORY_ID, False), rf"annotation 17: category_id False \(bool\) {NOT_AN_ID}"),
        (change(*CATEGORY_ID, math.inf), rf"annotation 17: category_id inf .* {NOT_AN_ID}"),
        (change(*CROWD, "maybe"), r"annotation 17: iscrowd 'maybe' \(str\) is neither 0 nor 1"),
        (change(*CROWD, 2), r"annotation 17: iscrowd 2 \(int\) is neither 0 nor 1"),
        (change(*CROWD, math.nan), r"annotation 17: iscrowd nan \(float\) is neither 0 nor 1"),
        (change(*CROWD, [1]), r"annotation 17: iscrowd \[1\] \(list\) is neither 0 nor 1"),
        (change(*ANNOTATION, {"id": 17}), "annotations, id 17: no 'image_id'"),
        (
            change(*ANNOTATION, {"id": None, "image_id": 1, "category_id": 4}),
            "annotations, entry 3: unknown category 4$",
        ),
        (change(*ANNOTATION, [17]), "annotations, entry 3: no 'id'"),
        (remove(*ANNOTATION, "id"), "annotations, entry 3: no 'id'"),
        (change("annotations", None), "no list of annotations"),
        (remove("annotations"), "no list of annotations"),
        (change("annotations", {"17": {}}), "no list of annotations"),
        (change("images", []), "list of images is empty"),
        (change("images", 1, None), "images, entry 1: no 'id'"),
        (
            change("images", 1, "id", 3),
            r"images, id 3: two entries have this id, 1\.png and 3\.png",
        ),
        (change("images", 1, "id", 3.0), "images, id 3: two entries have this id"),
        (
            change("images", 1, "id", "3"),
            r"images: ids of two types, such as 0 \(int\) and '3' \(s",
        ),
        (change("images", 1, "id", [1]), rf"images, id \[1\]: id \[1\] \(list\) {NOT_AN_ID}"),
        (change("images", 1, "id", None), rf"images, entry 1: id None .* {NOT_AN_ID}"),
        (change("images", 1, "id", True), rf"images, id True: id True \(bool\) {NOT_AN_ID}"),
        (change("images", 1, "file_name", "gone.png"), "gone.png: no such image file .listed in"),
        (change("images", 1, "file_name", "train.json"), "train.json: not a readable image"),
        (change("images", 1, "file_name", ""), "not a readable image"),
        (change("images", 1, "file_name", "a\0b"), "not a readable image"),
        (change("images", 1, "file_name", "a" * 5000), "not a readable image"),
        (change("images", 1, "file_name", None), r"id 1: file_name None \(NoneType\) is not a str"),
        (change("images", 1, "file_name", 1), r"images, id 1: file_name 1 \(int\) is not a string"),
        (change("images", 1, "width", 61), "1.png: 60 x 40 pixels, but .* says 61 x 40"),
        (change("images", 1, "width", "60"), rf"images, id 1: width '60' \(str\) {NOT_A_SIDE}"),
        (change("images", 1, "width", 0), rf"images, id 1: width 0 \(int\) {NOT_A_SIDE}"),
        (change("images", 1, "height", -40), rf"images, id 1: height -40 \(int\) {NOT_A_SIDE}"),
        (change("images", 1, "height", 40.5), rf"images, id 1: height 40.5 .* {NOT_A_SIDE}"),
        (change("images", 1, "height", math.nan), rf"images, id 1: height nan .* {NOT_A_SIDE}"),
        (change("images", 1, "height", HUGE), rf"images, id 1: height 1000.* {NOT_A_SIDE}"),
        (change("images", 1, "height", None), rf"images, id 1: height None .* {NOT_A_SIDE}"),
        (change("images", 1, "height", True), rf"images, id 1: height True .* {NOT_A_SIDE}"),
        (remove("images", 1, "height"), "images, id 1: no 'height'"),
        (change("categories", []), "list of categories is empty"),
        (change("categories", 0, "id", 3), "categories, id 3: two entries have this id, wide and"),
        (change("categories", 0, "id", "7"), "categories: ids of two types, such as '7' .str. and"),
        (change("categories", 0, "id", [7]), rf"categories, .*: id \[7\] \(list\) {NOT_AN_ID}"),
        (change("categories", 0, "id", True), rf"categories, .*: id True \(bool\) {NOT_AN_ID}"),
        (change("categories", 0, "name", None), r"id 7: name None \(NoneType\) is not a string"),
        (change("categories", 0, "name", 7), r"categories, id 7: name 7 \(int\) is not a string"),
        (
            change("categories", 0, "name", "odd"),
            r"category 7 \(wide\) is not in the training file$",
        ),
    ],
)
def test_fault_in_own_data_is_named(own_data, fault, message):
    content = own_data.content()
    fault(content)
    own_data.write(content)
    out = own_data.folder / "run"
    with pytest.raises(SystemExit, match=message) as stopped:
        train_detector.main([*own_data.options, "--out", str(out)])
    assert str(own_data.folder) in str(stopped.value)
    assert not out.exists()


def test_categories_of_the_validation_file_may_not_be_of_another_type(own_data):
    content = own_data.content()
    for category in content["categories"]:
        category["id"] = str(category["id"])
    for annotation in content["annotations"]:
        annotation["category_id"] = str(annotation["category_id"])
    own_data.write(content)
    train = CocoFile(own_data.folder, own_data.train)
    assert train.categories == {"3": "high", "7": "wide"}
    with pytest.raises(DataError, match=r"category 7 \(wide\) is not .* type int, .* type str$"):
        CocoFile(own_data.folder, own_data.val, train.categories)


@pytest.mark.parametrize(
    ("text", "message"), [(None, "cannot be read"), ("{", "not valid JSON"), ("[]", "JSON list")]
)
def test_json_file_that_cannot_be_read_is_named(own_data, text, message):
    own_data.val.unlink()
    if text is not None:
        own_data.val.write_text(text)
    with pytest.raises(SystemExit, match=f"val.json: .*{message}"):
        train_detector.main(own_data.options)


def test_image_cut_short_is_named(own_data):
    broken = own_data.folder / "2.png"
    broken.write_bytes(broken.read_bytes()[:3000])  # The size can still be read.
    coco_file = CocoFile(own_data.folder, own_data.train)
    with pytest.raises(DataError, match=r"2\.png: not a readable image"):
        coco_file.read(2)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        (
            "sub\\1.png",
            "; a backslash in a name separates folders on Windows only: write /",
        ),
        ("sub/1.png", ""),
    ],
)
def test_a_backslash_in_a_missing_name_gets_a_hint(own_data, name, hint):
    content = own_data.content()
    content["images"][1]["file_name"] = name
    own_data.write(content)
    with pytest.raises(DataError, match="no such image file") as error:
        CocoFile(own_data.folder, own_data.train)
    assert str(error.value).endswith(f"(listed in {own_data.train}{hint})")


def test_a_backslash_in_the_name_of_a_file_that_exists_is_no_fault(own_data):
    (own_data.folder / "1.png").rename(own_data.folder / "sub\\1.png")
    content = own_data.content()
    content["images"][1]["file_name"] = "sub\\1.png"
    own_data.write(content)
    assert CocoFile(own_data.folder, own_data.train).read(1).shape == (40, 60, 3)


def test_boxes_without_width_or_height_are_left_out(own_data):
    """As one of COCO's train2017 is. In float32 a width of 1e-9 beside 9 is none either."""
    content = own_data.content()
    sides = [(0, 5), (5, 0.0), (0, 0), (-0.0, 5), (1e-9, 5)]
    for annotation, (width, height) in zip(content["annotations"], sides, strict=False):
        annotation["bbox"] = [9, 9, width, height]
    content["annotations"][0]["bbox"][:2] = [60, 40]  # at the corner of the image
    own_data.write(content)
    path = own_data.folder / "0.png"
    message = f"{own_data.train}: .*: 5; the first is annotation 3, of {path}$"
    with pytest.warns(UserWarning, match=message) as warned:
        coco_file = CocoFile(own_data.folder, own_data.train)
    assert len(warned) == 1
    assert [len(boxes) for boxes in coco_file.boxes] == [0, 0, 1, 2, 2]
    assert [labels.tolist() for labels in coco_file.labels] == [[], [], [1], [0, 1], [0, 1]]
    truth = coco_file.ground_truth()
    assert [a["id"] for a in truth["annotations"]] == [1, 2, 3, 4, 5]
    assert [a["image_id"] for a in truth["annotations"]] == [2, 3, 3, 4, 4]
    assert all(a["area"] > 0 for a in truth["annotations"])


def test_boxes_are_clipped_to_the_image(own_data):
    content = own_data.content()
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0]["bbox"] = [-5, 30.5, 100, 1e30]
    own_data.write(content)
    coco_file = CocoFile(own_data.folder, own_data.train)
    np.testing.assert_array_equal(coco_file.boxes[0], [[0, 30.5, 60, 40]])
    assert coco_file.boxes[0].dtype == np.float32
    assert [boxes.shape for boxes in coco_file.boxes[1:]] == [(0, 4)] * 4
    assert [labels.dtype for labels in coco_file.labels] == [np.int32] * 5


@pytest.mark.parametrize(
    ("flag", "crowd"),
    [(flag, False) for flag in (0, 0.0, False, None, "0", "false", "False")]
    + [(flag, True) for flag in (1, 1.0, True, "1", "true", "True")],
)
def test_crowd_flags(own_data, flag, crowd):
    content = own_data.content()
    content["annotations"][3]["iscrowd"] = flag
    own_data.write(content)
    coco_file = CocoFile(own_data.folder, own_data.train)
    assert coco_file.labels[1].tolist() == [0, IGNORED if crowd else 1]
    flags = [annotation["iscrowd"] for annotation in coco_file.ground_truth()["annotations"]]
    assert flags == [0, 0, 0, int(crowd)] + [0] * 6
    assert all(type(value) is int for value in flags)


@pytest.mark.parametrize("kind", [int, float, str])
def test_ids_of_one_type_are_read(own_data, kind):
    """Whole numbers written as floats, as pandas writes them, are whole numbers."""
    content = own_data.content()
    for image in content["images"]:
        image["id"] = kind(image["id"])
        image["width"], image["height"] = float(image["width"]), float(image["height"])
    for annotation in content["annotations"]:
        annotation["image_id"] = kind(annotation["image_id"])
    own_data.write(content)
    coco_file = CocoFile(own_data.folder, own_data.train)
    assert coco_file.image_ids == (list("01234") if kind is str else [0, 1, 2, 3, 4])
    assert coco_file.sizes == [(60, 40)] * 5
    assert all(type(i) is (str if kind is str else int) for i in coco_file.image_ids)
    assert [labels.tolist() for labels in coco_file.labels] == [[0, 1]] * 5


@pytest.mark.parametrize("kind", [int, float, str])
def test_pycocotools_accepts_the_ground_truth(own_data, kind):
    """Detections equal to the ground truth have an AP of 1, whatever the type of the ids."""
    content = own_data.content()
    for key, names in {
        "images": ["id"],
        "annotations": ["image_id", "category_id"],
        "categories": ["id"],
    }.items():
        for entry in content[key]:
            entry |= {name: kind(entry[name]) for name in names}
    content["annotations"][3]["iscrowd"] = "0"
    own_data.write(content)
    coco_file = CocoFile(own_data.folder, own_data.train)
    truth = coco_file.ground_truth()
    assert json.loads(json.dumps(truth)) == truth
    results = [
        {**{name: a[name] for name in ("image_id", "category_id", "bbox")}, "score": 0.9}
        for a in truth["annotations"]
    ]
    validation = ValidationSet("own", truth, load=None, category_ids=list(coco_file.categories))
    assert average_precision(validation, results) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}


# ------------------------------------------------------------- images that EXIF turns upright


def save_turned(path, upright, orientation):
    """Save an image such that its EXIF orientation, 3 or 6, turns it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns = {3: 2, 6: 1}[orientation]  # quarter turns to the left
    Image.fromarray(np.rot90(upright, turns)).save(path, exif=exif, quality=100)


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
@pytest.mark.parametrize("side", [40, 60])
def test_boxes_on_the_upright_image_fit(own_data, name, orientation, side):
    """The box around a white rectangle is where the white is, also in a square image."""
    upright = np.zeros((40, side, 3), np.uint8)
    upright[8:24, 16:32] = 255
    save_turned(own_data.folder / name, upright, orientation)
    content = own_data.content()
    content["images"] = [{"id": 0, "file_name": name, "width": side, "height": 40}]
    content["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 3, "bbox": [16, 8, 16, 16]},
    ]
    own_data.write(content)
    coco_file = CocoFile(own_data.folder, own_data.train)
    image, ((x1, y1, x2, y2),) = coco_file.read(0), coco_file.boxes[0].astype(int)
    assert image.shape == upright.shape
    inside = np.zeros(image.shape[:2], bool)
    inside[y1:y2, x1:x2] = True
    assert image[inside].min() > 200
    assert image[~inside].max() < 55


def test_the_size_listed_must_be_that_of_the_upright_image(own_data):
    upright = np.zeros((60, 40, 3), np.uint8)
    save_turned(own_data.folder / "1.png", upright, 6)  # stored as 60 x 40, which the file says
    with pytest.raises(DataError, match=r"1\.png: 40 x 60 pixels, but .* says 60 x 40; .* by EXIF"):
        CocoFile(own_data.folder, own_data.train)


def test_exif_behind_the_pixels_of_a_png(own_data):
    """The header alone does not tell the size: it is checked again when the image is read."""
    path = own_data.folder / "1.png"
    save_turned(path, np.zeros((60, 40, 3), np.uint8), 6)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, rest = data[start:end], data[:start] + data[end:]
    last = rest.index(b"IEND") - 4
    path.write_bytes(rest[:last] + chunk + rest[last:])
    coco_file = CocoFile(own_data.folder, own_data.train)
    with pytest.raises(DataError, match=r"1\.png: 40 x 60 pixels, but .* says 60 x 40; .* by EXIF"):
        coco_file.read(1)
    content = own_data.content()
    content["images"][1] |= {"width": 40, "height": 60}
    own_data.write(content)
    assert CocoFile(own_data.folder, own_data.train).read(1).shape == (60, 40, 3)
