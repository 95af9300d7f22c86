r"""Network Deconvolution: convolutions and linear layers that whiten their input (Ye et al., ICLR 2020).

A layer computes $y = W D (x - \mu) + b$ for every patch $x$ of its input, where $\mu$ is the patches' mean and $D$ an
inverse square root of their covariance. Nothing is subtracted or multiplied where the image is large: with
$W' = W D$ and $b' = b - W' \mu$ it is the ordinary convolution of $W'$ and $b'$, in training and in evaluation alike.
Padding is part of a patch, so mean and covariance are of padded patches, and $b'$ is exact at the border too.
"""

from pellucid.whiten.base import DEFAULTS, HEAD, PUBLISHED, Blocking, Options, Whitening
from pellucid.whiten.convolution import FastDeconv1d, FastDeconv2d, FastDeconv3d
from pellucid.whiten.pixels import ChannelDeconv, FastDeconvLinear, FastDeconvTranspose2d

__all__ = [
    "DEFAULTS",
    "HEAD",
    "PUBLISHED",
    "Blocking",
    "ChannelDeconv",
    "FastDeconv1d",
    "FastDeconv2d",
    "FastDeconv3d",
    "FastDeconvLinear",
    "FastDeconvTranspose2d",
    "Options",
    "Whitening",
]
