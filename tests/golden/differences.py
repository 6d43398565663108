"""The golden cases that are answered differently on purpose: the reason, and our answer.

An answer is RAISES, or a function of the case's inputs and of `values`, which gives our loss
without weight and reduction, of the same or other inputs: numbers that the other cases tie to the
reference. What is done with them here is NumPy's. A loss with state gets the inputs of all steps
and answers the last outputs and the state, by name. `Rearranged` is the original's own answer,
gradient and state included, in other shapes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

RAISES = "raises"


class Rearranged(NamedTuple):
    """rearrange: inputs and outputs of a step, by name -> our outputs."""

    rearrange: Callable[[dict, dict], dict]


EPS = 1.1920929e-07


def zeros(inputs, values):
    return np.zeros_like(values())


def weighted_mean(inputs, values):
    """Weights of any sign, one a row."""
    weight = inputs["weight"]
    values = values()
    return (values * weight.reshape(weight.shape + (1,) * (values.ndim - weight.ndim))).mean()


def weighted_rows(inputs, values):
    return values() * inputs["weight"][:, None]


def mean_absolute_error(inputs, values):
    return np.abs(inputs["pred"] - inputs["target"]).mean()


def ignored_label(inputs, values):
    """A negative label costs 0 and counts in the mean."""
    kept = inputs["target"] >= 0
    known = values({**inputs, "target": np.where(kept, inputs["target"], 0)})
    return (known * kept.reshape(kept.shape + (1,) * (known.ndim - 1))).mean()


def not_a_number(inputs, values):
    return np.nan


def top_bin(inputs, values):
    """Row 0 has its target on the last bin; only the bin counts, no right neighbour."""
    pred, target = inputs["pred"], inputs["target"]
    log_p = pred[0] - np.log(np.exp(pred[0] - pred[0].max()).sum()) - pred[0].max()
    rest = values({"pred": pred[1:], "target": target[1:]})
    return (rest.sum() - log_p[-1]) / len(target)


def ignored_distance(inputs, values):
    """Row 0 has its target at -1 or below."""
    rest = values({"pred": inputs["pred"][1:], "target": inputs["target"][1:]})
    return rest.sum() / len(inputs["target"])


def mask_values(inputs):
    own = inputs["pred"][np.arange(len(inputs["label"])), inputs["label"]]
    return np.logaddexp(0, own) - inputs["target"] * own


def mask_mean(inputs, values):
    return mask_values(inputs).mean() if inputs["pred"].size else 0.0


def mask_sum(inputs, values):
    return mask_values(inputs).sum()


def mask_none(inputs, values):
    return mask_values(inputs)


def mask_over_avg_factor(inputs, values):
    return mask_values(inputs).sum() / (inputs["avg_factor"] + EPS)


def bce(p, t):
    return -(t * np.log(p) + (1 - t) * np.log(1 - p))


def focal_mean(p, t):
    miss = (1 - p) * t + p * (1 - t)
    return ((0.25 * t + 0.75 * (1 - t)) * miss**2 * bce(p, t)).mean()


def focal_of_dense_target(inputs, values):
    return focal_mean(1 / (1 + np.exp(-inputs["pred"])), inputs["target"])


def quality_focal_of_dense_target(inputs, values):
    p, t = 1 / (1 + np.exp(-inputs["pred"])), inputs["target"]
    return (np.abs(t - p) ** 2 * bce(p, t)).sum(1).mean()


def weighted_sum(inputs, values):
    """The original's values are not those of `values` where a weight is 0, and do not count."""
    return (values() * inputs.get("weight", 1)).sum()


def zero(inputs, values):
    return 0.0


def listed_topk(inputs, values):
    """Percent of rows whose class is among the 1 and the 2 highest scores."""
    order = np.argsort(-inputs["pred"], axis=1)
    hit = order == inputs["target"][:, None]
    return [np.array([100 * hit[:, :k].any(1).mean()]) for k in (1, 2)]


# A function and its class share one default here, the class's (eps 1e-6). The functions' cases
# are replayed with the original's function's given.
OTHER_DEFAULTS = {
    f"{name}_loss": {"eps": 1e-7} for name in ("giou", "diou", "ciou", "eiou", "siou")
}


def at_their_rows(inputs, outputs):
    """The original gives Seesaw's loss of classes for the rows that are no background only."""
    classes = np.zeros(len(inputs["target"]), outputs["out.loss_cls_objectness"].dtype)
    classes[inputs["target"] < 5] = outputs["out.loss_cls_classes"]
    return {**outputs, "out.loss_cls_classes": classes}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_softmax(x):
    return (
        x
        - x.max(1, keepdims=True)
        - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True))
    )


def seesaw_rows(steps, classes=5):
    """Of the last step: losses of objectness and class, the rows of objects; and the counts."""
    counts = np.zeros(classes + 1)
    for inputs in steps:
        pred, target = inputs["pred"], inputs["target"]
        weight = inputs.get("label_weights", np.ones(len(target))) * (target >= 0)
        counts += np.bincount(target[(weight != 0) & (target <= classes)], minlength=classes + 1)
        objects = (weight != 0) & (target < classes)
        background = (target == classes).astype(int)
        objectness = -log_softmax(pred[:, classes:])[np.arange(len(target)), background] * weight
        objectness[target > classes] = np.nan
        of_class = np.zeros(len(target))
        n = np.maximum(counts[:classes], 1)
        for i in np.flatnonzero(objects):
            z, y = pred[i, :classes], target[i]
            s = np.exp(z) / np.exp(z).sum()
            factor = np.minimum(1, n / n[y]) ** 0.8 * np.maximum(1, s / max(s[y], 0.01)) ** 2
            factor[y] = 1
            of_class[i] = weight[i] * (np.log((factor * np.exp(z)).sum()) - z[y])
    return objectness, of_class, objects, counts


def seesaw_answer(objectness, of_class, counts):
    return {
        "out.loss_cls_objectness": objectness,
        "out.loss_cls_classes": of_class,
        "state.cum_samples": counts,
    }


def seesaw_mean(steps, values):
    objectness, of_class, objects, counts = seesaw_rows(steps)
    return seesaw_answer(objectness.mean(), of_class.sum() / max(objects.sum(), 1), counts)


def seesaw_sum(steps, values):
    objectness, of_class, _, counts = seesaw_rows(steps)
    return seesaw_answer(objectness.sum(), of_class.sum(), counts)


def seesaw_none(steps, values):
    objectness, of_class, _, counts = seesaw_rows(steps)
    return seesaw_answer(objectness, of_class, counts)


def seesaw_rows_added(steps, values):
    objectness, of_class, _, counts = seesaw_rows(steps)
    return {"out": objectness + of_class, "state.cum_samples": counts}


def eqlv2_rows(steps, classes=5):
    """The losses of the rows of the last step, without weight, and the state after it."""
    pos, neg, ratio = np.zeros(classes), np.zeros(classes), np.full(classes, 100.0)
    for inputs in steps:
        pred, target = inputs["pred"], inputs["target"]
        r = np.append(sigmoid(12 * (ratio - 0.8)), 1)
        t = target[:, None] == np.arange(classes + 1)
        w = np.where(t, 1 + 4 * (1 - r), r)
        rows = (w * (np.logaddexp(0, pred) - t * pred)).sum(1)
        rows[target < 0], rows[target > classes] = 0, np.nan
        grad = (w * np.abs(sigmoid(pred) - t))[(target >= 0) & (target <= classes)]
        t = t[(target >= 0) & (target <= classes)]
        if len(t):
            pos, neg = pos + (grad * t).sum(0)[:-1], neg + (grad * ~t).sum(0)[:-1]
            ratio = pos / (neg + 1e-10)
    return rows, {"state.pos_grad": pos, "state.neg_grad": neg, "state.pos_neg": ratio}


def eqlv2_mean(steps, values):
    rows, state = eqlv2_rows(steps)
    return {"out": rows.sum() / max(len(rows), 1), **state}


def eqlv2_sum(steps, values):
    rows, state = eqlv2_rows(steps)
    return {"out": rows.sum(), **state}


def eqlv2_weighted(steps, values):
    rows, state = eqlv2_rows(steps)
    return {"out": rows * steps[-1].get("weight", 1), **state}


DIFFERENCES = {}


def differ(reason, answer, losses, *slugs):
    for loss in losses.split():
        for slug in slugs:
            DIFFERENCES[loss, slug] = (reason, answer)


CROSS_ENTROPIES = "CrossEntropyLoss CrossEntropyCustomLoss"
L1S = "L1Loss SmoothL1Loss BalancedL1Loss"

DISTANCE_IOUS = "DIoULoss CIoULoss EIoULoss SIoULoss"
L2S = "L2Loss MarginL2Loss"

EARLY_RETURN = "no early return where no weight is positive: the values are weighted as always"
differ(EARLY_RETURN, zeros, "L1Loss SmoothL1Loss", "wzero_full_none")
differ(EARLY_RETURN, zeros, "L1Loss SmoothL1Loss GIoULoss", "wzero_override_none")
differ(EARLY_RETURN, zeros, f"{DISTANCE_IOUS} BoundedIoULoss", "wzero_override_none")
differ(EARLY_RETURN, zeros, f"{DISTANCE_IOUS} GIoULoss", "wzero_N_none")
differ(EARLY_RETURN, zeros, "BoundedIoULoss", "wzero_N4_none")
differ(EARLY_RETURN, weighted_mean, "L1Loss SmoothL1Loss GIoULoss IoULoss", "w_all_negative")
differ(EARLY_RETURN, weighted_mean, f"{DISTANCE_IOUS} BoundedIoULoss", "w_all_negative")
CHECKED = "arguments are checked whatever the weights are"
differ(CHECKED, RAISES, "L1Loss SmoothL1Loss", "wzero_bad_override_noerr")
differ(CHECKED, RAISES, "GIoULoss", "wzero_bad_override")
UNWEIGHED = ("wzero_bad_override", "wzero_sum_avg_noerr")
differ(CHECKED, RAISES, f"{DISTANCE_IOUS} BoundedIoULoss", *UNWEIGHED)
differ(CHECKED, RAISES, "GIoULoss IoULoss", "wzero_sum_avg_noerr")
differ("reduction none keeps the shape of empty values", zeros, L1S, "N0_none")
PER_ROW = "a weight (N,) counts per row against values (N, k), N == k included"
differ(PER_ROW, weighted_mean, f"{L1S} MSELoss", "w_N_shape_err", "w_N_zero")
differ(PER_ROW, weighted_mean, "GaussianFocalLoss VarifocalLoss BoundedIoULoss", "w_N_err")
differ(PER_ROW, weighted_rows, f"{L1S} MSELoss", "w_N_N4_broadcast")
NC = "a weight a value goes with class indices too"
differ(NC, weighted_mean, CROSS_ENTROPIES, "bce_onehot_wNC_err")
SHAPES = "pred and target of different shapes are an error, empty ones included"
differ(SHAPES, RAISES, f"{L1S} IoULoss GIoULoss", "target_empty_pred_not")
differ(SHAPES, RAISES, "IoULoss GIoULoss", "pred_empty_target_not")
differ(SHAPES, RAISES, "MSELoss", "mismatch_bcast")
L1 = "smooth L1 of beta 0 is L1, as in torch"
differ(L1, mean_absolute_error, "SmoothL1Loss", "beta0_err")
NEGATIVE = "a negative label is ignored"
differ(NEGATIVE, ignored_label, f"{CROSS_ENTROPIES} FocalLoss FocalCustomLoss", "label_neg_err")
differ(NEGATIVE, ignored_distance, "DistributionFocalLoss", "target_neg_err")
NO_CLASS = "what names no class makes the loss NaN; jitted code cannot raise on values"
differ(NO_CLASS, not_a_number, CROSS_ENTROPIES, "label_eq_C_err")
differ(NO_CLASS, not_a_number, "FocalLoss", "label_gt_C_err", "activated_outside01_err")
differ(NO_CLASS, not_a_number, "FocalCustomLoss", "label_gt_C_err")
differ(NO_CLASS, not_a_number, "DistributionFocalLoss", "target_gt_n_err")
differ("a target on the last bin is that bin", top_bin, "DistributionFocalLoss", "target_eq_n_err")
VISDET = "works as in mmdet; visdet lacks it"
differ(VISDET, focal_of_dense_target, "FocalLoss", "onehot_float_err")
NO_WEIGHT = "alpha outside [0, 1] is an error: a negative one would turn the gradient round"
differ(NO_WEIGHT, RAISES, "FocalLoss FocalCustomLoss", "alpha_neg")
NO_PROBABILITY = "activated=True works as in mmdet, and these logits are no probabilities: NaN"
differ(NO_PROBABILITY, not_a_number, "FocalLoss QualityFocalLoss", "activated_err")
DENSE = ("tensor_target_err", "tensor_target_N2")
differ(VISDET, quality_focal_of_dense_target, "QualityFocalLoss", *DENSE)
IGNORED = "a weight that would be ignored is an error"
differ(IGNORED, RAISES, "GaussianFocalLoss", "posinds_weight_ignored")
DROPPED = "what would be ignored is an error"
differ(DROPPED, RAISES, "FocalCustomLoss", "activated_ignored")
differ(DROPPED, RAISES, "MultiPosCrossEntropyLoss", "extra_kw_ignored")
SUMS = ("w_full_sum", "wzero_full_sum", "ov_sum", "red_sum_err")
differ("sum is the sum of the weighted values", weighted_sum, L2S, *SUMS)
NO_OTHER = "a row without another class to be far from costs 0"
differ(NO_OTHER, zero, "TripletLoss", "one_class_err", "N1_err", "N0_err")
differ("a config's sequences become tuples", listed_topk, "Accuracy", "topk_list_err")
SCALAR = "a mask's mean is a scalar, not of shape (1,)"
MASKS = ("default", "loss_weight", "N0_None", "N1", "in_C1", "in_extreme", "in_soft", "lw", "4x1")
differ(SCALAR, mask_mean, CROSS_ENTROPIES, *(f"mask_{slug}" for slug in MASKS))
differ(SCALAR, mask_mean, "mask_cross_entropy", "default", "N0")
differ("masks may be one pixel high", mask_mean, CROSS_ENTROPIES, "mask_1x4_squeeze_err")
REDUCTIONS = "masks take every reduction and avg_factor"
differ(REDUCTIONS, mask_sum, CROSS_ENTROPIES, "mask_red_sum_err")
differ(REDUCTIONS, mask_sum, "mask_cross_entropy", "red_sum_err")
differ(REDUCTIONS, mask_none, CROSS_ENTROPIES, "mask_ov_none_err")
differ(REDUCTIONS, mask_over_avg_factor, CROSS_ENTROPIES, "mask_avg_err")
BY_CLASS = "a mask's class_weight is by class, not along the width"
differ(BY_CLASS, RAISES, CROSS_ENTROPIES, "mask_cw_len_W")
differ(BY_CLASS, RAISES, "mask_cross_entropy", "cw_bcast")
NO_SUM = "GHM raises for sum when it is built; the original raises in every call that sums"
differ(NO_SUM, RAISES, "GHMC GHMR", "ov_mean")
ROWS_OF_OBJECTS = "Seesaw without reduction gives a value a row, 0 for background"
NONE = ("red_none", "w_N_none", "avg_none", "ov_none", "N0_none", "seq3_none")
differ(ROWS_OF_OBJECTS, Rearranged(at_their_rows), "SeesawLoss", *NONE, "in_allbg", "in_extreme")
differ(ROWS_OF_OBJECTS, seesaw_rows_added, "SeesawLoss", "nodict_none_err")
PADDING = "a row of weight 0 is not read: it is no sample of its class, nor counts in its mean"
differ(PADDING, seesaw_mean, "SeesawLoss", "w_N", "wzero_N", "seq4_w")
differ(PADDING, seesaw_sum, "SeesawLoss", "w_N_sum", "wzero_N_sum")
differ(PADDING, seesaw_none, "SeesawLoss", "wzero_N_none")
differ(NEGATIVE, seesaw_mean, "SeesawLoss", "label_neg_err")
differ(NEGATIVE, eqlv2_mean, "EQLV2Loss", "label_neg1_is_last")
differ(NO_CLASS, seesaw_mean, "SeesawLoss", "label_gt_C_err")
differ(NO_CLASS, eqlv2_mean, "EQLV2Loss", "label_gt_C_err")
HEARD = "reduction, weight and avg_factor have the effect they have in every loss"
differ(HEARD, eqlv2_sum, "EQLV2Loss", "red_sum_ignored")
differ(HEARD, eqlv2_weighted, "EQLV2Loss", "red_none_ignored", "args_ignored")
differ(CHECKED, RAISES, "EQLV2Loss", "bad_override_ignored")
differ("an empty batch costs 0 and leaves the state as it is", eqlv2_mean, "EQLV2Loss", "N0")
