"""SDNet: layers whose output is the sparse code of their input (Dai et al., NeurIPS 2022)."""
