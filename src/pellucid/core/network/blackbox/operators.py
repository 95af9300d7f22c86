"""The operators that a `torch.export` program of a stranger may call: arithmetic on tensors, and nothing else.

torch has operators that map files into memory, and a program may also name functions of Python by their dotted path. So
what is not in this list is refused. It has what the evaluation of 68 networks of torchvision and timm uses, and what is
of the same kind.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

from pellucid.core.errors import InputError, shown

_ARITHMETIC = """
    conv1d conv2d conv3d convolution conv_transpose1d conv_transpose2d conv_transpose3d linear addmm mm bmm baddbmm
    matmul einsum dot mv outer scaled_dot_product_attention bilinear im2col col2im unfold
    batch_norm _native_batch_norm_legit_no_training native_batch_norm layer_norm native_layer_norm group_norm
    native_group_norm instance_norm rms_norm linalg_vector_norm norm cosine_similarity
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest1d
    upsample_nearest2d upsample_bilinear2d upsample_bicubic2d grid_sampler pixel_shuffle pixel_unshuffle
    channel_shuffle
    relu relu_ relu6 relu6_ leaky_relu leaky_relu_ prelu elu elu_ selu selu_ celu celu_ gelu silu silu_ mish mish_
    sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ softplus
    softmax _softmax log_softmax _log_softmax log_sigmoid glu threshold threshold_ dropout dropout_ feature_dropout
    alpha_dropout feature_alpha_dropout native_dropout
    add add_ sub sub_ mul mul_ div div_ rsub neg pow pow_ square sqrt rsqrt exp exp_ expm1 log log1p log2 log10 abs sign
    sin cos tan atan atan2 erf ceil floor round trunc frac fmod remainder floor_divide reciprocal maximum minimum clamp
    clamp_ clamp_min clamp_min_ clamp_max clamp_max_ addcmul addcdiv lerp sum mean var var_mean std prod amax amin max
    min argmax argmin any all cumsum cumprod topk sort argsort kthvalue logsumexp
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor
    __and__ __or__ where masked_fill masked_fill_ isnan isinf isfinite tril triu
    view view_as reshape reshape_as flatten unflatten squeeze unsqueeze transpose t permute swapaxes movedim expand
    expand_as repeat repeat_interleave tile cat stack concat split split_with_sizes chunk unbind slice select narrow
    index index_select gather scatter scatter_add embedding one_hot flip roll rot90 pad constant_pad_nd reflection_pad1d
    reflection_pad2d replication_pad1d replication_pad2d contiguous clone copy_ detach detach_ alias lift_fresh_copy to
    _to_copy type_as _unsafe_view view_as_real view_as_complex diagonal meshgrid numpy_T
    zeros ones full empty arange linspace eye zeros_like ones_like full_like empty_like new_zeros new_ones new_full
    new_empty scalar_tensor fill fill_ zero_ sym_size sym_numel sym_stride
    promote_types result_type
"""
_ATEN = frozenset(_ARITHMETIC.split())
# Arguments of text that choose a way of rounding, padding and the like.
_TEXT = frozenset(
    {"rounding_mode", "reduction", "mode", "approximate", "ord", "equation", "indexing", "padding", "reduce", "p"}
)
# They compute nothing: what they would complain of is seen in what comes out.
IGNORED = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
                     "sym_constrain_range_for_size"})  # fmt: skip
_PYTHON: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_",
    )},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_not", "sym_float")},
}  # fmt: skip


def operator_named(target: str, what: str) -> Callable[..., Any] | None:
    """The operator that a program calls `target`; None for one that computes nothing.

    Raises:
        InputError: it is not in the list; `what` begins the sentence.
    """
    if target in _PYTHON:
        return _PYTHON[target]
    parts = target.split(".")
    if len(parts) == 5 and parts[:3] == ["torch", "ops", "aten"]:
        name, overload = parts[3:]
        if name in IGNORED:
            return None
        packet = getattr(torch.ops.aten, name, None) if name in _ATEN else None
        if packet is not None and overload in packet.overloads():
            call: Any = getattr(packet, overload)
            # TorchScript has variants of its own, such as slices of text.
            if all("str" not in str(one.type) or one.name in _TEXT for one in call._schema.arguments):
                return call
    raise InputError(
        f"{what} calls {shown(target, 80)}, which is not among the operators that pellucid runs from a file: export "
        "the network to ONNX instead."
    )
