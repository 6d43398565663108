"""D-FINE's criterion in the form of its own config, for a small decoder."""

model = dict(
    type="DFINE",
    bbox_head=dict(
        type="DFINECriterion",
        num_classes=10,
        weight_dict=dict(loss_vfl=1, loss_bbox=5, loss_giou=2, loss_fgl=0.15, loss_ddf=1.5),
        losses=["vfl", "boxes", "local"],
        alpha=0.75,
        gamma=2.0,
        reg_max=32,
        matcher=dict(
            type="HungarianMatcher",
            weight_dict=dict(cost_class=2, cost_bbox=5, cost_giou=2),
            alpha=0.25,
            gamma=2.0,
        ),
    ),
)
