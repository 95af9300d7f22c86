"""Network Deconvolution (Ye et al., ICLR 2020): layers that whiten their input."""
