"""The zoo: one file a network, all with ``forward(x, noise_label, class_label=None)``."""
