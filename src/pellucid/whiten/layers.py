r"""Network Deconvolution: convolutions and linear layers that whiten their input (Ye et al., ICLR 2020).

A layer computes $y = W D (x - \mu) + b$ for every patch $x$ of its input, where $\mu$ is the mean of the patches and
$D$ an inverse square root of their covariance. The image itself is never whitened, which would be expensive: with
$W' = W D$ and $b' = b - W' \mu$ the layer is an ordinary convolution with weight $W'$ and bias $b'$, in training and in
evaluation alike. Padding is part of a patch, so mean and covariance are of padded patches, and $b'$ is exact at the
border too.
"""

from pellucid.whiten.base import Whitening
from pellucid.whiten.channels import ChannelDeconv, ChannelHead
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.linear import FastDeconvLinear
from pellucid.whiten.options import DEFAULTS, HEAD, PUBLISHED, Blocking, Options
from pellucid.whiten.transposed import FastDeconvTranspose2d

__all__ = [
    "DEFAULTS",
    "HEAD",
    "PUBLISHED",
    "Blocking",
    "ChannelDeconv",
    "ChannelHead",
    "FastDeconv1d",
    "FastDeconv2d",
    "FastDeconv3d",
    "FastDeconvLinear",
    "FastDeconvTranspose2d",
    "Options",
    "Whitening",
]
