"""Names of classes that mmdet, mmrotate and mmyolo have and this package has not.

A config that names one of them gets a plain answer, and not the most similar name of another class.
A class that is added here leaves the list; a test says so.
"""

ELSEWHERE = {
    "mmdet": """
        ATSSVLFusionHead AnchorFreeHead ApproxMaxIoUAssigner AutoAssignHead
        BasePanopticFusionHead BaseSemanticHead BboxOverlaps2D_GLIP BoxInstBboxHead
        BoxInstMaskHead BucketingBBoxCoder CascadeRPNHead
        CenterRegionAssigner CentripetalHead CoarseMaskHead
        CondInstBboxHead CondInstMaskHead CornerHead DDODHead DDQDETRHead
        DecoupledSOLOHead DecoupledSOLOLightHead DeltaXYWHBBoxCoderForGLIP
        DynamicRoIHead
        FSAFHead FeatureRelayHead FoveaHead FreeAnchorRetinaHead FusedSemanticHead
        GARPNHead GARetinaHead GlobalContextHead GridAssigner GridHead GridRoIHead
        GuidedAnchorHead HTCMaskHead HeuristicFusionHead
        HybridTaskCascadeRoIHead LADHead LDHead LegacySSDAnchorGenerator
        Mask2FormerTrackHead MaskFormerFusionHead MaskIoUHead
        MaskPointHead MaskPseudoSampler MaskScoringRoIHead MultiInsRandomSampler
        MultiInstanceAssigner MultiInstanceBBoxHead MultiInstanceRoIHead PAAHead
        PISARetinaHead PISARoIHead PISASSDHead PointAssigner
        PointGenerator PointRendRoIHead PseudoBBoxCoder QuasiDenseEmbedHead
        QuasiDenseTrackHead
        RegionAssigner RepPointsHead RoIEmbedHead RoITrackHead SABLHead SABLRetinaHead
        SCNetBBoxHead SCNetMaskHead SCNetRoIHead SCNetSemanticHead SOLOHead SOLOV2Head
        SSDAnchorGenerator SSDHead ScoreHLRSampler
        StageCascadeRPNHead TopkHungarianAssigner
        UniformAssigner YOLACTHead YOLOBBoxCoder YOLOFHead
        YOLOV3Head
        """,
    "mmrotate": """
        ATSSKldAssigner ATSSObbAssigner AngleBranchRetinaHead BCConvexGIoULoss CFAHead
        CSLCoder CSLRFCOSHead CSLRRetinaHead ConvexAssigner ConvexGIoULoss
        DeltaXYWHAHBBoxCoder DeltaXYWHAOBBoxCoder DistanceAnglePointCoder GVBBoxHead
        GVFixCoder GVRatioCoder GVRatioRoIHead H2RBoxHead H2RBoxV2Head KFIoUODMRefineHead
        KFIoURRetinaHead KFIoURRetinaRefineHead KLDRepPointsLoss MaxConvexIoUAssigner
        MidpointOffsetCoder ODMRefineHead OrientedRPNHead OrientedRepPointsHead
        OrientedStandardRoIHead PseudoAnchorGenerator R3Head R3RefineHead RBboxOverlaps2D
        RRandomSampler RoITransRoIHead RotatedATSSHead RotatedAnchorFreeHead
        RotatedAnchorGenerator RotatedAnchorHead RotatedBBoxHead RotatedConvFCBBoxHead
        RotatedFCOSHead RotatedIoULoss RotatedKFIoUShared2FCBBoxHead RotatedRPNHead
        RotatedRTMDetHead RotatedRTMDetSepBNHead RotatedRepPointsHead RotatedRetinaHead
        RotatedRetinaRefineHead RotatedShared2FCBBoxHead RotatedStandardRoIHead S2AHead
        S2ARefineHead SAMRepPointsHead SASAssigner SmoothFocalLoss SpatialBorderLoss
        """,
    "mmyolo": """
        BatchATSSAssigner
        DistanceAnglePointCoder OksLoss PPYOLOEHead PoseSimOTAAssigner RTMDetRotatedHead
        YOLOXBBoxCoder YOLOXPoseHead YOLOv5BBoxCoder YOLOv5InsHead YOLOv6Head
        YOLOv7Head
        """,
}


def not_here(name: str) -> str:
    """The sentence "mmdet's PAAHead is not here (yet)." for a name of the list, else ""."""
    for library, names in ELSEWHERE.items():
        if name in names.split():
            return f"{library}'s {name} is not here (yet)."
    return ""
