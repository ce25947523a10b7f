"""Why the hidden-states oracle does not apply to a type as it stands, one sentence each."""

_CONVOLUTIONAL = (
    "A convolutional net (timm_wrapper: a ResNet by default) without transformer blocks: discovery refuses it in a "
    "sentence, as it should, and what the model calls hidden states are feature maps."
)
_STAGES = (
    "A hybrid: its hidden states are the outputs of convolutional stages, each behind a fusing convolution, and no "
    "states of the transformer blocks inside the stages, which are discovered."
)
_NETS = (
    "align_vision_model bit convnext convnextv2 dinov3_convnext efficientnet flava_image_codebook hgnet_v2 "
    "mobilenet_v1 mobilenet_v2 regnet resnet rt_detr_resnet pp_lcnet pp_lcnet_v3 pp_lcnet_v4 pp_ocrv5_mobile_det "
    "pp_ocrv5_mobile_rec pp_ocrv5_server_rec pp_ocrv6_small_rec pp_ocrv6_tiny_rec textnet superpoint upernet "
    "uvdoc_backbone timm_wrapper"
)

REASONS: dict[str, str] = {
    **dict.fromkeys(_NETS.split(), _CONVOLUTIONAL),
    "mobilevit": _STAGES,
    "mobilevitv2": _STAGES,
}
