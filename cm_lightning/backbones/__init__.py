"""The zoo: one file for each network, all with ``forward(x, noise_label, class_label=None)``."""
