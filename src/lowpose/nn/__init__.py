"""Networks: layers, backbones, heads, and the model that joins them. Torch begins here."""
