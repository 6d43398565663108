"""Average precision by pycocotools, and the table."""

import numpy as np
import pytest

from detector import data, evaluation
from detector.data import IGNORED

pytestmark = pytest.mark.example


def test_average_precision_of_known_detections():
    boxes = np.array([[0, 0, 10, 10], [20, 0, 40, 10], [0, 30, 10, 40], [50, 50, 60, 60]], "f4")
    labels = np.array([0, 0, 0, IGNORED])
    validation = data.ValidationSet(
        "known", data.coco_dict([boxes], [labels], ["thing"]), load=None, category_ids=[0]
    )
    truth = validation.ground_truth["annotations"]
    results = [
        {"image_id": 0, "category_id": 0, "bbox": a["bbox"], "score": 0.9} for a in truth[:3]
    ]
    score = evaluation.average_precision
    assert score(validation, results) == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    # Pictures are drawn of them afterwards, and would take what pycocotools adds for masks.
    assert all(set(row) == {"image_id", "category_id", "bbox", "score"} for row in results)
    in_crowd = {**results[0], "bbox": [51, 51, 5, 5], "score": 0.95}
    assert score(validation, [in_crowd, *results])["AP"] == 1.0
    beside = {**results[0], "bbox": [51, 20, 5, 5], "score": 0.95}
    assert score(validation, [beside, *results])["AP"] == pytest.approx(0.75)  # 3 of 4 are right
    loose = [{**r, "bbox": [*r["bbox"][:3], 5.2]} for r in results]  # an IoU of 0.52
    assert score(validation, loose) == pytest.approx({"AP": 0.1, "AP50": 1.0, "AP75": 0.0})
    assert score(validation, []) == {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}


def test_average_precision_of_masks():
    """Masks and boxes are measured by themselves."""
    masks = np.zeros((2, 40, 40), bool)
    masks[0, 5:15, 5:15] = masks[1, 20:30, 20:40] = True
    boxes = np.array([[5, 5, 15, 15], [20, 20, 40, 30]], "f4")
    truth = data.coco_dict([boxes], [np.array([0, 0])], ["thing"], [masks])
    image = np.zeros((40, 40, 3), np.uint8)
    validation = data.ValidationSet(
        "known", truth, load=lambda index: (image, data.Letterbox(40, 40)), category_ids=[0]
    )
    loose = masks.copy()
    loose[0, 5:15, 5:11] = False  # An IoU of 0.4 with the mask, below the least threshold.
    slots = {"boxes": boxes, "scores": np.array([0.9, 0.8]), "labels": np.array([0, 0])}
    padded = {
        name: np.concatenate([rows, rows[:1]]) for name, rows in {**slots, "masks": loose}.items()
    }
    exists = np.array([True, True, False])
    results = evaluation.detect(lambda image: {**padded, "exists": exists}, validation)
    assert [result["bbox"] for result in results] == [[5, 5, 10, 10], [20, 20, 20, 10]]
    assert evaluation.average_precision(validation, results)["AP"] == 1.0
    # The better of the two detections is wrong: half of all is right at a recall of a half.
    masks_ap = evaluation.average_precision(validation, results, "segm")["AP"]
    assert masks_ap == pytest.approx(0.5 * 51 / 101)


@pytest.mark.parametrize("label", [None, IGNORED])
@pytest.mark.parametrize("detections", [0, 1])
def test_average_precision_is_not_available_without_objects(label, detections):
    """Neither without any annotation, nor with a crowd only."""
    boxes = np.zeros((0, 4)) if label is None else np.array([[0.0, 0, 10, 10]])
    labels = np.full(len(boxes), IGNORED)
    validation = data.ValidationSet(
        "none", data.coco_dict([boxes], [labels], ["thing"]), load=None, category_ids=[0]
    )
    results = [{"image_id": 0, "category_id": 0, "bbox": [0, 0, 9, 9], "score": 0.9}] * detections
    nothing = {"AP": None, "AP50": None, "AP75": None}
    assert evaluation.average_precision(validation, results) == nothing
    row = {"images": 1, "boxes": 0, **nothing}
    table = evaluation.format_table(
        {"fcos": {"seconds": {"training": 2.0}, "validation": {"none": row}}}
    )
    header, _, line = table.splitlines()
    assert line.split() == ["fcos", "none", "1", "0", "n/a", "n/a", "n/a", "2"]
    assert len(line) == len(header)


def test_the_table_shows_three_digits():
    row = {"images": 1, "boxes": 3, "AP": 0.12345, "AP50": 1.0, "AP75": 0.0}
    table = evaluation.format_table(
        {"fcos": {"seconds": {"training": 2.0}, "validation": {"strip": row}}}
    )
    assert table.splitlines()[2].split()[4:7] == ["0.123", "1.000", "0.000"]
