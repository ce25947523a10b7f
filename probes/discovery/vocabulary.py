"""Sort torch calls by what they do to a stream that passes through them.

Names are those of torch's functions and of its dispatcher, without leading and trailing underscores; the names of
modules, classes and parameters are never read.
"""

from __future__ import annotations

import re

# The same elements, seen or stored in another way.
CASTS = frozenset(
    "to float half bfloat16 double type type_as to_copy clone contiguous cpu cuda detach alias positive lift_fresh "
    "resolve_conj convert_element_type autocast_to_reduced_precision autocast_to_full_precision".split()
)
VIEWS = CASTS | frozenset(
    "view reshape transpose permute flatten unflatten squeeze unsqueeze movedim moveaxis swapaxes swapdims t "
    "view_as reshape_as unsafe_view adjoint ravel get_T get_mT get_data get_H get_mH view_as_real view_as_complex "
    "identity get_real".split()
)
# Some of the elements, or elements of several tensors put together: size decides which.
PARTS = frozenset(
    "getitem select slice narrow chunk split split_with_sizes unbind tensor_split hsplit vsplit index_select gather "
    "take_along_dim index masked_select roll flip cat concat concatenate hstack vstack stack pad constant_pad_nd "
    "setitem index_put index_copy masked_scatter scatter slice_scatter select_scatter repeat expand expand_as tile "
    "repeat_interleave broadcast_to overlap as_strided unsafe_chunk unsafe_split copy take unfold_copy index_fill "
    "pad_sequence sort argsort_gather".split()
)
MASKS = frozenset("nan_to_num clamp clip clamp_min clamp_max masked_fill where".split())
DROPOUTS = frozenset(
    "dropout native_dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout bernoulli fused_dropout".split()
)
# Norms as single calls, by kind. Batch norm in eval mode is an affine map, but it is where the model is normed.
NORMS = {
    "layer_norm": "layernorm",
    "native_layer_norm": "layernorm",
    "rms_norm": "rmsnorm",
    "fused_rms_norm": "rmsnorm",
    "normalize": "rmsnorm",
    "batch_norm": "batchnorm",
    "native_batch_norm": "batchnorm",
    "native_batch_norm_legit_no_training": "batchnorm",
    "cudnn_batch_norm": "batchnorm",
    "group_norm": "groupnorm",
    "native_group_norm": "groupnorm",
    "instance_norm": "instancenorm",
}
NORM_MODULE = "norm module"

ADDS = frozenset("add iadd radd".split())
SUBTRACTIONS = frozenset("sub isub subtract".split())
PRODUCTS = frozenset("mul imul rmul multiply".split())
QUOTIENTS = frozenset("div idiv truediv itruediv true_divide divide".split())
SUMS = frozenset("sum mean".split())
GATES = frozenset("sigmoid tanh softmax hardsigmoid hardtanh".split())
POOLS = re.compile(r".*pool[123]d.*|interpolate|upsample.*")

# Matrix products that may be written with two varying operands.
MATRIX_PRODUCTS = frozenset("matmul rmatmul bmm einsum baddbmm mm addmm addbmm tensordot".split())
ATTENTION = re.compile(
    r".*scaled_dot_product.*|multi_head_attention_forward|flex_attention.*|native_multi_head_attention"
)
CONVOLUTIONS = re.compile(r"conv.*|thnn_conv.*|mkldnn_convolution.*|slow_conv.*")
LINEAR = frozenset("linear mv dot inner bilinear chain_matmul".split()) | MATRIX_PRODUCTS
EXPERTS = re.compile(r".*grouped_mm.*")
HEAVY = re.compile(
    r"linear|matmul|rmatmul|mm|bmm|addmm|addbmm|baddbmm|addmv|mv|dot|inner|einsum|tensordot|bilinear|chain_matmul|"
    r"linalg.*|.*grouped_mm.*|conv.*|thnn_conv.*|mkldnn_convolution.*|slow_conv.*|.*scaled_dot_product.*|"
    r"multi_head_attention_forward|native_multi_head_attention|flex_attention.*|embedding|embedding_bag|"
    r".*fft.*|stft|istft|.*pool[123]d.*|interpolate|upsample.*|grid_sample.*|cumsum|logcumsumexp|lstm.*|gru.*|rnn.*|"
    r"opaque|unfold|fold|im2col|col2im|associative_scan|transformer_encoder_layer_fwd|mkldnn_linear|lstm_cell|gru_cell|"
    r"rnn_tanh_cell"
)
# What chooses experts: nothing else in a feed-forward branch picks by content.
ROUTERS = re.compile(r"topk|argmax|one_hot|nonzero|histc|.*grouped_mm.*|bincount|argsort")


def is_heavy(name: str) -> bool:
    """Return whether a call computes something new from what it reads, rather than passing it on."""
    return HEAVY.fullmatch(name) is not None
