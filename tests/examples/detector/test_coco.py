"""Own data in COCO format: batches, and the letterbox."""

import numpy as np
import pytest

from detector import coco
from detector.coco_file import CocoFile
from detector.data import PADDING

pytestmark = pytest.mark.example


def make_coco(own_data, **options):
    files = (own_data.folder, own_data.train, own_data.folder, own_data.val)
    return coco.Coco(
        *files, **{"batch_size": 5, "image_size": 60, "max_boxes": 8, "seed": 0, **options}
    )


def test_too_many_boxes_are_counted(own_data):
    content = own_data.content()
    for annotation in content["annotations"][2:6]:
        annotation["image_id"] = 0  # This image has 6 boxes, 4 too many.
    content["annotations"][9]["image_id"] = 3  # This one has 3 boxes, 1 too many.
    own_data.write(content)
    with pytest.warns(UserWarning, match=r"more than 2 boxes: 2; .* out of training: 5 "):
        dataset = make_coco(own_data, max_boxes=2)
    assert dataset.train_batch(0)["boxes"].shape == (5, 2, 4)


def test_own_data_batch(own_data, monkeypatch):
    content = own_data.content()
    content["annotations"][1]["iscrowd"] = 1  # category 7 of image 0
    own_data.write(content, content)
    monkeypatch.setattr(coco, "flip", lambda image, boxes: (image, boxes))
    dataset = make_coco(own_data)
    assert [a["iscrowd"] for a in dataset.validation[0].ground_truth["annotations"]] == [0, 1] + [
        0
    ] * 8
    assert dataset.class_names == ["high", "wide"]
    batch = dataset.train_batch(0)  # 5 of 5 images, each of them once
    first = int(np.argmin(batch["boxes"][:, :, 0].max(axis=1)))  # x1 is 5 + 4 * image
    order = np.argsort(batch["boxes"][:, 0, 0])
    assert batch["labels"][order][:, :3].tolist() == [
        [0, PADDING, PADDING],
        *[[1, 0, PADDING]] * 4,
    ]  # Larger boxes come first; the crowd is left out.
    np.testing.assert_allclose(batch["boxes"][first, 0], [5, 13, 25, 31])  # below a bar of 10 rows
    assert dataset.validation[0].category_ids == [3, 7]


def test_each_image_once_per_pass(own_data, monkeypatch):
    dataset = make_coco(own_data, batch_size=2)
    read, original = [], CocoFile.read
    monkeypatch.setattr(
        CocoFile, "read", lambda self, index: read.append(index) or original(self, index)
    )
    for step in range(5):
        dataset.train_batch(step)
    assert sorted(read[:5]) == sorted(read[5:]) == [0, 1, 2, 3, 4]
    assert read[:5] != read[5:]


@pytest.mark.parametrize(("width", "height"), [(60, 40), (41, 97), (300, 7), (64, 64)])
def test_letterbox_geometry(width, height):
    rng = np.random.default_rng(width)
    box = np.array([[0.25 * width, 0.25 * height, 0.75 * width, 0.75 * height]]).round()
    x1, y1, x2, y2 = box[0].astype(int)
    image = np.zeros((height, width, 3), np.uint8)
    image[y1:y2, x1:x2] = 255
    canvas, place = coco.letterbox(image, 64)
    assert canvas.shape == (64, 64, 3)
    rows, columns = np.nonzero(canvas[..., 0] > 127)
    painted = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(place.forward(box)[0], painted, atol=1)
    rows, columns = np.nonzero(coco.letterbox(np.full_like(image, 255), 64)[0][..., 0] == 255)
    np.testing.assert_allclose(
        place.forward(np.array([[0, 0, width, height]]))[0],
        [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1],
        atol=1e-3,
    )

    boxes = np.sort(rng.uniform(0, [width, height], (20, 2, 2)), axis=1).reshape(20, 4)
    np.testing.assert_allclose(place.backward(place.forward(boxes)), boxes, atol=1e-3)
    beyond = place.forward(np.array([[-5.0, -5.0, width + 5.0, height + 5.0]]))
    np.testing.assert_allclose(place.backward(beyond), [[0, 0, width, height]])
